"""The checkpoint's run, kept between validations: what it is taken for, and what it is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.progress import Progress
from lfm_convert.validate.prompts import EncodedPrompt
from lfm_convert.validate.reference import Reference, compute_reference, load_reference
from lfm_convert.validate.reference_cache import ReferenceCache

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
