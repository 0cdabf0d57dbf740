"""Conversion with tuned codes: what is written says so, weighs the same, and nothing is begun that cannot be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.manifest import load_manifest
from lfm_convert.convert.pipeline import convert, open_model, plan
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.convert.tuning import read_text
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.files import hash_files
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.progress import SILENT
from lfm_convert.quantize.tuning.store import Store
from lfm_convert.targets.target import get_target


@pytest.fixture(scope="module")
def graph() -> WeightGraph:
    return open_model("bundled:dense")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few hundred lines that are not all alike."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    sentence = "a boat and the tide were late again so nobody could tell which of them had left the harbour first"
    words = sentence.split()
    random = np.random.default_rng(1)
    path.write_text("\n".join(" ".join(random.choice(words, 12)) for _ in range(60)))
    return path


@pytest.fixture(scope="module")
def written(graph: WeightGraph, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("tuned") / "out"
    convert(graph, target="gguf", quant="Q4_0", out=out, tune=("codes",), statistics=text, jobs=2, validate_after=False)
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
    graph: WeightGraph, text: Path, written: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Store, "finish", lambda *_: pytest.fail("tuned again"))
    settings = {"target": "gguf", "quant": "Q4_0", "out": written, "tune": ("codes",), "validate_after": False}
    convert(graph, statistics=text, skip_existing=True, **settings)
    with pytest.raises(UsageError, match="already exists"):
        convert(graph, statistics=text, **settings)
    other = text.with_name("other.txt")
    other.write_text(text.read_text()[::-1])
    with pytest.raises(UsageError, match="other importance"):
        convert(graph, statistics=other, skip_existing=True, **settings)


def test_an_interrupted_run_keeps_finished_layers(
    graph: WeightGraph, text: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish = Store.finish

    def stopped(self: Store, layer: int) -> None:
        finish(self, layer)
        if layer == 2:
            raise KeyboardInterrupt

    settings = {"target": "gguf", "quant": "Q4_0", "out": tmp_path, "tune": ("codes",), "statistics": text}
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "finish", stopped)
        convert(graph, jobs=1, validate_after=False, **settings)
    assert not list(tmp_path.glob("*.gguf"))
    finished = []
    monkeypatch.setattr(Store, "finish", lambda self, layer: (finished.append(layer), finish(self, layer)))
    convert(graph, jobs=1, validate_after=False, **settings)
    assert finished == [3, 4]
    assert not (tmp_path / ".lfm-tuning").exists()
    ours, theirs = (hash_files(find_artifacts(folder)[0].files, jobs=1) for folder in (tmp_path, written))
    assert ours == theirs  # one worker, in two goes, or two workers in one


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"tune": ("codes",)}, "--tune needs --statistics"),
        ({"tune": ("colours",), "statistics": "text"}, "--tune colours: expected codes"),
        ({"statistics": "text"}, "is used by --tune only"),
        ({"tune": ("codes",), "statistics": "text", "quant": "F16"}, "stores no matrix in codes that can be tuned"),
        ({"tune": ("codes",), "statistics": "short"}, "at least 1024 tokens"),
    ],
)
def test_what_cannot_be_is_refused_first(
    graph: WeightGraph, text: Path, tmp_path: Path, settings: dict[str, object], said: str
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("a boat")
    files = {"text": text, "short": short}
    given = {key: files.get(str(value), value) for key, value in settings.items()}
    with pytest.raises(UsageError, match=said):
        convert(graph, out=tmp_path / "out", **{"target": "gguf", "quant": "Q4_0", **given})
    assert not (tmp_path / "out").exists()


def test_statistics_are_those_of_the_checkpoint(graph: WeightGraph, text: Path, tmp_path: Path) -> None:
    write_statistics(graph, [text], tmp_path / "stats")
    found, alone = (read_text(graph, path, SILENT) for path in (tmp_path / "stats", text))
    assert found.texts == alone.texts and found.sha256 != alone.sha256
    assert [tuple(chunk) for chunk in found.chunks] == list(alone.chunks)
    with pytest.raises(InputError, match=r"another checkpoint|other checkpoint"):
        convert("bundled:moe", target="gguf", out=tmp_path / "out", tune=("codes",), statistics=tmp_path / "stats")
    assert not (tmp_path / "out").exists()
