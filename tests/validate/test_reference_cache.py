"""The checkpoint's run, kept between validations: what it is taken for, and what it is not."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled, pipeline
from lfm_convert.convert.manifest import MANIFEST_FILE
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.progress import Progress
from lfm_convert.validate.gates import Part
from lfm_convert.validate.kept_checkpoint import open_kept
from lfm_convert.validate.prompts import EncodedPrompt
from lfm_convert.validate.reference import Reference, compute_reference, load_reference
from lfm_convert.validate.reference_cache import ReferenceCache
from lfm_convert.validate.results import Verdict
from support.checkpoints import make_checkpoint
from support.configs import dense_config

PROMPTS = tuple(EncodedPrompt(f"p{n}", (1, *range(30, 30 + n))) for n in (9, 20))


@pytest.fixture
def run(moe_graph: WeightGraph, tmp_path: Path) -> tuple[Reference, Path]:
    folder = tmp_path / "run"
    folder.mkdir()
    return compute_reference(moe_graph, PROMPTS, folder), folder


def _entry(cache: ReferenceCache) -> Path:
    found = cache.find(PROMPTS)
    assert found is not None
    return found


def test_what_is_kept_is_what_was_computed(run: tuple[Reference, Path], moe_graph: WeightGraph, tmp_path: Path) -> None:
    reference, folder = run
    cache = ReferenceCache(tmp_path / "cache", "abc")
    assert cache.find(PROMPTS) is None
    cache.keep(PROMPTS, folder)
    again = load_reference(moe_graph, PROMPTS, _entry(cache))
    for i in range(len(PROMPTS)):
        assert np.array_equal(again.logits(i)[:], reference.logits(i)[:])
    beginnings = (PROMPTS[1], PROMPTS[0].cut(4))
    before, after = reference.own(beginnings), again.own(beginnings)
    assert [len(rows[:]) for rows in after.logits] == [21, 4]
    for layer, chosen in before.routed.items():
        assert len(chosen) == 25 and np.array_equal(after.routed[layer], chosen)
        assert np.array_equal(after.ranked[layer], before.ranked[layer])
    assert not list(cache.folder.glob(".*"))


def test_another_checkpoint_prompt_or_version_finds_nothing(
    run: tuple[Reference, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ReferenceCache(tmp_path / "cache", "abc")
    cache.keep(PROMPTS, run[1])
    assert ReferenceCache(cache.folder, "abd").find(PROMPTS) is None
    assert cache.find(PROMPTS[:1]) is None
    assert cache.find((PROMPTS[1], PROMPTS[0])) is None
    monkeypatch.setattr("lfm_convert.validate.reference_cache.__version__", "0.0.0")
    assert cache.find(PROMPTS) is None


@pytest.mark.parametrize("name", ["rows.f32", "experts.npz", "entry.json"])
@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_entry_is_computed_again(run: tuple[Reference, Path], tmp_path: Path, name: str, damage: str) -> None:
    notes: list[str] = []
    cache = ReferenceCache(tmp_path / "cache", "abc", Progress(note=notes.append))
    cache.keep(PROMPTS, run[1])
    path = _entry(cache) / name
    data = path.read_bytes()
    match damage:
        case "changed":
            path.write_bytes(data[:20] + bytes([data[20] ^ 1]) + data[21:])
        case "cut":
            path.write_bytes(data[:10])
        case "gone":
            path.unlink()
    assert cache.find(PROMPTS) is None
    assert "is not used, and computed again" in notes[0]
    cache.keep(PROMPTS, run[1])
    assert _entry(cache)


def test_the_least_recently_used_go_first(run: tuple[Reference, Path], tmp_path: Path) -> None:
    n_bytes = sum(path.stat().st_size for path in run[1].iterdir())
    caches = [ReferenceCache(tmp_path / "cache", str(i), limit_bytes=2 * n_bytes + 2000) for i in range(3)]
    for i, cache in enumerate(caches[:2]):
        cache.keep(PROMPTS, run[1])
        os.utime(_entry(cache) / "entry.json", (i, i))
    assert caches[0].find(PROMPTS)  # used now
    mine = caches[0].folder / "mine"
    mine.mkdir()
    (mine / "entry.json").write_text("{}")
    os.utime(mine / "entry.json", (0, 0))
    caches[2].keep(PROMPTS, run[1])
    assert mine.exists()
    assert [cache.find(PROMPTS) is not None for cache in caches] == [True, False, True]


def test_a_cache_that_cannot_be_written_is_said(run: tuple[Reference, Path], tmp_path: Path) -> None:
    notes: list[str] = []
    (tmp_path / "place").write_text("")
    ReferenceCache(tmp_path / "place" / "cache", "abc", Progress(note=notes.append)).keep(PROMPTS, run[1])
    assert len(notes) == 1 and "is not kept" in notes[0]


def test_a_file_is_no_cache(moe_graph: WeightGraph, tmp_path: Path) -> None:
    place = tmp_path / "file"
    place.write_text("")
    with pytest.raises(UsageError, match="is a file; name a folder"):
        pipeline.convert(
            moe_graph, target="gguf", quant="F16", out=tmp_path / "out", comparison={"reference_cache": place}
        )
    assert not (tmp_path / "out").exists()


def test_a_second_validation_takes_it(moe_graph: WeightGraph, tmp_path: Path) -> None:
    pipeline.convert(moe_graph, target="gguf", quant="Q8_0", out=tmp_path / "out", validate_after=False)
    reports, notes = [], ([], [])
    for each in notes:
        progress, cache = Progress(note=each.append), tmp_path / "cache"
        found = pipeline.validate(
            [tmp_path / "out"], reference=moe_graph, suite="smoke", reference_cache=cache, progress=progress
        )
        reports.append(found.to_json()["artifacts"][0])
    assert [any("is taken from" in text for text in each) for each in notes] == [False, True]
    assert reports[0]["metrics"] == reports[1]["metrics"]
    assert reports[0]["verdict"] == reports[1]["verdict"] == "pass"


@pytest.fixture(scope="module")
def kept(few: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """A checkpoint, a folder of artifacts made from it, and a cache that has its run on few prompts."""
    folder = tmp_path_factory.mktemp("kept")
    model = Path(shutil.copytree(bundled.path("dense"), folder / "model"))
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "transformers_version": "0"}))  # else it is a bundled one
    for target, quant in (("mlx", "4bit"), ("onnx", "q4")):
        pipeline.convert(str(model), target=target, quant=quant, out=folder / "out" / target, validate_after=False)
    pipeline.validate([folder / "out" / "mlx"], reference=str(model), prompts=few, reference_cache=folder / "cache")
    return model, folder / "out", folder / "cache"


def test_artifacts_are_compared_where_the_checkpoint_is_not_at_hand(
    kept: tuple[Path, Path, Path], few: Path, tmp_path: Path
) -> None:
    model, out, cache = kept
    with_it = pipeline.validate([out / "onnx", out / "mlx"], reference=str(model), prompts=few)
    gone = model.rename(tmp_path / "elsewhere")
    try:
        without = pipeline.validate([out / "onnx", out / "mlx"], reference=None, prompts=few, reference_cache=cache)
    finally:
        gone.rename(model)
    for a, b in zip(with_it.results, without.results, strict=True):
        assert b.verdict is a.verdict is Verdict.PASS
        assert a.metrics is not None and b.metrics is not None
        assert b.metrics.kld_mean == pytest.approx(a.metrics.kld_mean, rel=1e-6)
        assert set(b.not_judged) == {Part.WEIGHTS, Part.FORMAT} and not a.not_judged
        judged = {gate.part for gate in a.gates} - {Part.WEIGHTS, Part.FORMAT}
        assert {gate.part for gate in b.gates} == judged
        assert "weights and format are not judged: the checkpoint is not at hand" in b.message


def test_a_runtime_that_is_wrong_is_found_without_the_checkpoint(
    kept: tuple[Path, Path, Path], few: Path, tmp_path: Path
) -> None:
    """The config beside the weights has another epsilon."""
    model, out, cache = kept
    wrong = Path(shutil.copytree(out / "mlx", tmp_path / "wrong"))
    config = next(wrong.rglob("config.json"))
    config.write_text(json.dumps({**json.loads(config.read_text()), "norm_eps": 1e-2}))
    manifest = wrong / MANIFEST_FILE
    text = json.loads(manifest.read_text())
    for file in text["artifacts"][0]["files"]:
        if Path(file["path"]).name == "config.json":
            file["sha256"] = hashlib.sha256(config.read_bytes()).hexdigest()
            file["bytes"] = config.stat().st_size
    manifest.write_text(json.dumps(text))
    gone = model.rename(tmp_path / "elsewhere")
    try:
        (found,) = pipeline.validate([wrong], reference=None, prompts=few, reference_cache=cache).results
    finally:
        gone.rename(model)
    assert found.verdict is Verdict.FAIL and "execution_kld" in found.message


def test_what_is_not_kept_asks_for_the_checkpoint(kept: tuple[Path, Path, Path], few: Path, tmp_path: Path) -> None:
    model, out, cache = kept
    gone = model.rename(tmp_path / "elsewhere")
    try:
        with pytest.raises(UsageError, match="--reference is needed: the artifacts were made from model"):
            pipeline.validate([out / "mlx"], reference=None, prompts=few, reference_cache=tmp_path / "empty")
        with pytest.raises(UsageError, match=r"--reference is needed: model is not at hand, and no run of it on these"):
            pipeline.validate([out / "mlx"], reference=None, suite="standard", reference_cache=cache)
        damaged = Path(shutil.copytree(cache, tmp_path / "damaged"))
        next(damaged.glob("*/head.bin")).write_bytes(b"")
        with pytest.raises(UsageError, match="which is not at hand here"):
            pipeline.validate([out / "mlx"], reference=None, prompts=few, reference_cache=damaged)
    finally:
        gone.rename(model)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_the_kept_head_is_the_checkpoints_to_the_bit(tmp_path: Path, dtype: str) -> None:
    source = make_checkpoint(tmp_path / "model", dense_config(), dtype=dtype)
    graph = open_graph(source)
    cache = ReferenceCache(tmp_path / "cache", "abc")
    cache.keep_checkpoint(graph)
    folder = cache.find_checkpoint()
    assert folder is not None
    again = open_kept(folder)
    n = graph.head.n_rows
    assert np.array_equal(again.head.rows(0, n), graph.head.rows(0, n))
    assert again.config.vocab_size == n and again.is_tied == graph.is_tied and not again.is_at_hand
    assert again.stop_ids == graph.stop_ids
