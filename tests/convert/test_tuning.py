"""Conversion with tuned codes: what is written says so, weighs the same, and nothing is begun that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.manifest import load_manifest
from lfm_convert.convert.pipeline import convert, open_model, plan
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.files import hash_files
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.quantize.tuning.store import Store
from lfm_convert.targets.target import get_target


@pytest.fixture(scope="module")
def graph() -> WeightGraph:
    return open_model("bundled:dense")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Lines that are not all alike."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    sentence = "a boat and the tide were late again so nobody could tell which of them had left the harbour first"
    words = sentence.split()
    random = np.random.default_rng(1)
    path.write_text("\n".join(" ".join(random.choice(words, 12)) for _ in range(60)))
    return path


@pytest.fixture(scope="module")
def by(graph: WeightGraph, text: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The settings of a conversion that is tuned by the statistics of the text."""
    return tuned_by(graph, text, tmp_path_factory.mktemp("statistics") / "stats")


def tuned_by(graph: WeightGraph, text: Path, folder: Path) -> dict[str, Any]:
    write_statistics(graph, [text], folder)
    options = {"statistics": str(folder)}
    return {"target": "gguf", "quant": "Q4_0", "tune": ("codes",), "options": options, "validate_after": False}


@pytest.fixture(scope="module")
def written(graph: WeightGraph, by: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    convert(graph, out=out, jobs=2, **by)
    return out


def test_names_and_manifest_say_so_and_bytes_are_the_same(graph: WeightGraph, text: Path, written: Path) -> None:
    (artifact,) = find_artifacts(written)
    (untuned,) = plan(graph, target="gguf", quant="Q4_0")
    assert "-tuned-" in artifact.path.name and "-tuned-" not in untuned.main_file
    assert artifact.entry["tensor_bytes"] == untuned.tensor_bytes
    tuned = artifact.entry["tuned"]
    assert tuned["texts"] == [{"name": text.name, "sha256": hash_files([text], jobs=1)[0]}]
    assert tuned["codes"]["tokens"] > 1024 and len(tuned["statistics_sha256"]) == 64
    assert any("weights are tuned" in note for note in artifact.entry["notes"])
    manifest = load_manifest(written)
    assert manifest is not None and manifest.source["name"] == graph.name
    assert sorted(path.name for path in written.iterdir()) == sorted([artifact.path.name, "lfm-convert.json"])
    plain = {(w.role, w.layer): w.view for w in graph.weights()}
    changed = 0
    for address, view in get_target("gguf").read(artifact).items():
        stock = next(each for each in untuned.tensors if (each.role, each.layer) == address)
        if stock.encoding.name == "Q4_0" and stock.layer is not None:
            rows = plain[address].rows(0, 8)
            changed += not np.array_equal(view.rows(0, 8), stock.encoding.decode(*stock.encoding.encode(rows)))
            assert np.square(view.rows(0, 8) - rows).sum() < 0.05 * np.square(rows).sum()
    assert changed > 20


def test_it_is_left_alone_when_it_is_there(
    graph: WeightGraph, text: Path, by: dict[str, Any], written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "finish", lambda *_: pytest.fail("tuned again"))
    convert(graph, out=written, skip_existing=True, **by)
    with pytest.raises(UsageError, match="already exists"):
        convert(graph, out=written, **by)
    other = text.with_name("other.txt")
    other.write_text(text.read_text()[::-1])
    with pytest.raises(UsageError, match="other importance"):
        convert(graph, out=written, skip_existing=True, **tuned_by(graph, other, tmp_path / "stats"))


def test_an_interrupted_run_keeps_finished_layers(
    graph: WeightGraph, by: dict[str, Any], written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Store.finish

    def stopped(self: Store, layer: int) -> None:
        finish(self, layer)
        if layer == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "finish", stopped)
        convert(graph, out=tmp_path, jobs=1, **by)
    assert not list(tmp_path.glob("*.gguf"))
    finished = []
    monkeypatch.setattr(Store, "finish", lambda self, layer: (finished.append(layer), finish(self, layer)))
    convert(graph, out=tmp_path, jobs=1, **by)
    assert finished == [3, 4]
    assert not (tmp_path / ".lfm-tuning").exists()
    ours, theirs = (hash_files(find_artifacts(folder)[0].files, jobs=1) for folder in (tmp_path, written))
    assert ours == theirs  # one worker, in two goes, or two workers in one


def test_what_cannot_be_is_refused_first(graph: WeightGraph, text: Path, by: dict[str, Any], tmp_path: Path) -> None:
    short = tmp_path / "short.txt"
    short.write_text(text.read_text()[:2000])
    for settings, said in (
        ({"options": {}}, "--tune=codes needs --statistics FOLDER"),
        ({"tune": ("colours",)}, "--tune=colours: expected bits or codes"),
        ({"quant": "F16"}, "stores no matrix in codes that can be tuned"),
        (tuned_by(graph, short, tmp_path / "stats"), "at least 1024 tokens"),
    ):
        with pytest.raises(UsageError, match=said):
            convert(graph, out=tmp_path / "out", **{**by, **settings})
    with pytest.raises(InputError, match="another checkpoint"):
        convert("bundled:moe", out=tmp_path / "out", **by)
    assert not (tmp_path / "out").exists()


def test_a_limit_of_memory_is_held_or_refused_before_any_work(
    graph: WeightGraph, by: dict[str, Any], written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (least,) = (int(planned.peak_memory_bytes()) for planned in plan(graph, **_asked(by)))
    assert least > 400_000_000  # what is held while it is tuned
    convert(graph, out=tmp_path / "within", jobs=8, max_memory=least, **by)
    ours, theirs = (hash_files(find_artifacts(each)[0].files, jobs=1) for each in (tmp_path / "within", written))
    assert ours == theirs
    monkeypatch.setattr(Store, "__init__", lambda *_: pytest.fail("begun"))
    with pytest.raises(UsageError, match=r"--max-memory 250 MB is too little to tune the codes of .*: at least \d+ MB"):
        convert(graph, out=tmp_path / "out", max_memory=250_000_000, **by)
    with pytest.raises(UsageError, match=r"too little to measure what encodings cost: at least \d+ MB"):
        convert(graph, out=tmp_path / "out", max_memory=250_000_000, **{**by, "tune": ("bits",)})
    assert not (tmp_path / "out").exists()


def _asked(by: dict[str, Any]) -> dict[str, Any]:
    return {name: by[name] for name in ("target", "quant", "tune", "options")}


def test_plans_are_of_what_is_written(graph: WeightGraph, by: dict[str, Any], written: Path) -> None:
    (planned,) = plan(graph, **_asked(by))
    (artifact,) = find_artifacts(written)
    assert planned.main_file == artifact.entry["main_file"]
    assert planned.to_json()["tuned"] == artifact.entry["tuned"]
