"""`lfm-convert calibrate MODEL -o FOLDER`: what it writes, what it refuses, and what an interruption leaves."""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.manifest import hash_source
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.files import digest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.imatrix import read_importance
from lfm_convert.quantize.statistics import gather
from lfm_convert.quantize.statistics.spool import Spool
from lfm_convert.quantize.statistics.statistics import open_statistics
from support.checkpoints import make_checkpoint, moe_config
from support.refusals import refused

WORDS = "The kettle was warm, and nobody had fed the cat; so we sat down, wrote a list and counted spoons. " * 8


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("texts") / "words.txt"
    path.write_text(WORDS)
    return path


@pytest.fixture(scope="module")
def written(tiny_moe: Path, text: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of tiny_moe with moments; read-only."""
    out = tmp_path_factory.mktemp("statistics") / "stats"
    assert calibrate(tiny_moe, text, out, "--moments", "--seed", 3) == 0
    return out


def calibrate(model: Path, text: Path, out: Path, *more: object) -> int:
    return main(["calibrate", str(model), "--text", str(text), "-o", str(out), "--chunk-size", "100", *map(str, more)])


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_a_folder_holds(written: Path, moe_graph: WeightGraph, text: Path) -> None:
    found = open_statistics(written, moe_graph, checkpoint=digest(hash_source(moe_graph)))
    ids = moe_graph.tokenizer.encode(WORDS, special=False)  # type: ignore[union-attr]
    assert [i for chunk in found.chunks for i in chunk[1:]] == ids and {chunk[0] for chunk in found.chunks} == {1}
    assert {len(chunk) for chunk in found.chunks[:-1]} == {100}
    assert found.n_tokens == sum(map(len, found.chunks)) and found.seed == 3 and found.has_moments
    (told,) = found.texts
    assert (told.name, told.n_tokens) == ("words.txt", found.n_tokens)
    assert told.sha256 == hashlib.sha256(text.read_bytes()).hexdigest()
    assert found.sha256 == hashlib.sha256((written / "statistics.json").read_bytes()).hexdigest()
    importance = read_importance(written)
    for weight in moe_graph.weights():
        address, columns = weight.address, found.columns(weight.address)
        if columns is None:
            assert len(weight.shape) == 1 or weight.role is Role.CONV_KERNEL
            assert found.gradients(address) is found.counts(address) is found.moments(address) is None
            continue
        n = weight.shape[0] if len(weight.shape) == 3 else 1
        counts, gradients = found.counts(address), found.gradients(address)
        assert columns.shape == (n, weight.shape[-1]) and gradients.shape == (n, weight.shape[-2])
        assert counts.shape == (n,) and (n > 1 or counts[0] == found.n_tokens)
        for which in {0, n - 1}:
            moments = found.moments(address, which)
            assert np.array_equal(moments, moments.T)
            assert np.allclose(np.diagonal(moments), columns[which], rtol=1e-4)
            assert np.linalg.eigvalsh(moments.astype(np.float64)).min() > -1e-4 * columns[which].max()
        if n == 1 and weight.layer is not None:
            assert np.allclose(importance.of_weight(address, weight.shape), columns, rtol=1e-5)
    for file in files(written).values():
        assert str(written.parent).encode() not in file


def test_the_same_again_to_the_byte(written: Path, tiny_moe: Path, text: Path, tmp_path: Path) -> None:
    assert calibrate(tiny_moe, text, tmp_path / "again", "--moments", "--seed", 3) == 0
    assert files(tmp_path / "again") == files(written)
    assert calibrate(tiny_moe, text, tmp_path / "other", "--seed", 4) == 0
    other = files(tmp_path / "other")
    assert other["columns.safetensors"] == files(written)["columns.safetensors"]
    assert other["gradients.safetensors"] != files(written)["gradients.safetensors"]


def test_without_moments(tiny_dense: Path, text: Path, tmp_path: Path) -> None:
    assert calibrate(tiny_dense, text, tmp_path / "stats") == 0
    found = open_statistics(tmp_path / "stats", open_graph(tiny_dense))
    assert not found.has_moments and found.moments((Role.FFN_GATE, 0)) is None
    assert sorted(path.name for path in (tmp_path / "stats").iterdir()) == [
        "columns.safetensors", "gradients.safetensors", "imatrix.gguf", "statistics.json", "tokens.safetensors",
    ]  # fmt: skip


def test_the_folder_is_importance_too(written: Path, tiny_moe: Path, tmp_path: Path) -> None:
    command = [str(tiny_moe), "-t", "gguf", "-q", "Q4_K_M", "--no-validate", "--imatrix"]
    assert main([*command, str(written), "--out", str(tmp_path / "a")]) == 0
    assert main([*command, str(written / "imatrix.gguf"), "--out", str(tmp_path / "b")]) == 0
    (one,), (other,) = (list((tmp_path / name).glob("*.gguf")) for name in "ab")
    assert one.read_bytes() == other.read_bytes()


def test_experts_that_borrow_are_told(
    written: Path, capsys: pytest.CaptureFixture[str], tiny_moe: Path, text: Path, tmp_path: Path
) -> None:
    told = json.loads((written / "statistics.json").read_text())["borrowed"]
    for experts in told.values():
        for about in experts.values():
            assert about["tokens"] < 128 and about["tokens"] + about["borrowed"] == 128
            assert 0 < about["counted_as"] <= about["borrowed"]
    assert told
    assert calibrate(tiny_moe, text, tmp_path / "a", "--max-chunks", 3) == 0
    told = json.loads((tmp_path / "a/statistics.json").read_text())["borrowed"]
    n_told, n_least = sum(map(len, told.values())), min(a["tokens"] for e in told.values() for a in e.values())
    out = capsys.readouterr().out
    assert f"{n_told} experts have fewer tokens than columns and borrow of those that ranked them next: " in out
    assert f"({n_least} + {128 - n_least})" in out


def test_what_is_there_survives(
    written: Path, tiny_moe: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "stats"
    shutil.copytree(written, out)
    before = files(out)
    refused(capsys, 2, "already exists; --overwrite replaces it", *command(tiny_moe, text, out))
    assert files(out) == before
    assert calibrate(tiny_moe, text, out, "--overwrite") == 0
    after = files(out)
    assert not any(name.startswith("moments/") for name in after), "moments of before are not taken for new ones"
    open_statistics(out, open_graph(tiny_moe))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("mine")
    refused(capsys, 2, "holds thesis.txt and no statistics.json", *command(tiny_moe, text, mine), "--overwrite")
    assert files(mine) == {"thesis.txt": b"mine"}
    refused(capsys, 2, "is a file: expected a folder", *command(tiny_moe, text, mine / "thesis.txt"))


def command(model: Path, text: Path, out: Path) -> list[str]:
    return ["calibrate", str(model), "--text", str(text), "-o", str(out)]


def test_too_little_text(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Nine words are not enough to measure a model.")
    refused(capsys, 5, "short.txt: ", *command(tiny_dense, text, tmp_path / "out"))
    refused(capsys, 5, "expected at least 256", *command(tiny_dense, text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_options_of_a_folder_do_not_go_with_a_file(
    tiny_dense: Path, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, 2, "go with a folder of statistics", *command(tiny_dense, text, tmp_path / "i.gguf"), "--moments")


def test_an_interruption_leaves_nothing(
    tiny_moe: Path, text: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(gather, "_turn_layer", interrupt)
    assert calibrate(tiny_moe, text, tmp_path / "new") == 130
    assert not (tmp_path / "new").exists()
    out = tmp_path / "old"
    shutil.copytree(written, out)
    assert calibrate(tiny_moe, text, out, "--overwrite") == 130
    assert files(out) == files(written)


def test_a_kill_leaves_no_half_folder(tiny_moe: Path, text: Path, tmp_path: Path) -> None:
    out = tmp_path / "stats"
    arguments = [*command(tiny_moe, text, out), "--chunk-size", "16"]
    running = subprocess.Popen([sys.executable, "-P", "-m", "lfm_convert", *arguments], stderr=subprocess.DEVNULL)
    while not list(out.glob(".lfm-partial/scratch/*")) and running.poll() is None:
        time.sleep(0.002)
    running.send_signal(signal.SIGKILL)
    running.wait()
    if not (out / "statistics.json").exists():  # else it was faster
        assert not [path for path in out.iterdir() if not path.name.startswith(".lfm-")]
        with pytest.raises(InputError, match=r"has no statistics\.json"):
            open_statistics(out, open_graph(tiny_moe))
        assert calibrate(tiny_moe, text, out) == 0
    assert not list(out.glob(".lfm-*"))


def test_a_resumed_run_gives_the_same_bytes(
    tiny_moe: Path, text: Path, written: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cut off once in every few writes, in one layer or another; other tokens are another run's."""
    out, write, n_writes = tmp_path / "stats", Spool.write, 0

    def write_some(spool: Spool, name: str, start: int, rows: np.ndarray) -> None:
        nonlocal n_writes
        n_writes += 1
        if n_writes % 4 == 0:
            raise KeyboardInterrupt
        write(spool, name, start, rows)

    monkeypatch.setattr(Spool, "write", write_some)
    options = ("--moments", "--seed", 3, "--resume")
    codes = [calibrate(tiny_moe, text, out, *options) for _ in range(2)]
    assert codes == [130, 130]
    monkeypatch.setattr(Spool, "write", write)
    assert (out / ".lfm-partial").is_dir()
    assert calibrate(tiny_moe, text, out, *options) == 0
    assert files(out) == files(written)
    assert calibrate(tiny_moe, text, out, "--seed", 4, "--resume", "--overwrite") == 0
    assert files(out).keys() < files(written).keys()


DAMAGE: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "version": (lambda facts: facts.update(version=2), "is of version 2: expected 1"),
    "no version": (lambda facts: facts.pop("version"), "is of version None"),
    "no texts": (lambda facts: facts.pop("texts"), "'texts' is None: expected list"),
    "texts": (lambda facts: facts.update(texts=[{"name": 1}]), "'texts' holds"),
    "tokens": (lambda facts: facts.update(n_tokens="many"), "'n_tokens' is 'many': expected int"),
    "files": (lambda facts: facts.update(files={}), "lists 'tokens.safetensors' as None"),
    "a way out": (lambda facts: facts["files"].update({"../x": {"bytes": 1}}), "lists '../x'"),
    "a long name": (lambda facts: facts["files"].update({"x" * 999: {"bytes": 1}}), "is not there: expected 1 bytes"),
    "a null byte": (lambda facts: facts["files"].update({"x\0": {"bytes": 1}}), "is not there: expected 1 bytes"),
    "template": (lambda facts: facts.update(template="0" * 64), "statistics with another chat template than"),
    "weights": (lambda facts: facts.update(sample="0" * 64), "statistics of another checkpoint than"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_facts(case: str, written: Path, moe_graph: WeightGraph, tmp_path: Path) -> None:
    out, (damage, sentence) = tmp_path / "stats", DAMAGE[case]
    shutil.copytree(written, out)
    facts = json.loads((out / "statistics.json").read_text())
    damage(facts)
    (out / "statistics.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=sentence.replace("(", "\\(")):
        open_statistics(out, moe_graph)


@pytest.mark.parametrize("name", ["gradients.safetensors", "columns.safetensors", "tokens.safetensors", "imatrix.gguf"])
def test_damaged_files(name: str, written: Path, moe_graph: WeightGraph, tmp_path: Path) -> None:
    out = tmp_path / "stats"
    shutil.copytree(written, out)
    data = bytearray((out / name).read_bytes())
    data[-5] ^= 1
    (out / name).write_bytes(data)
    with pytest.raises(InputError, match="is not as it was written"):
        open_statistics(out, moe_graph)
    (out / name).write_bytes(data[:-4])
    with pytest.raises(InputError, match=f"expected {len(data)} bytes; the statistics are damaged"):
        open_statistics(out, moe_graph)
    (out / name).unlink()
    with pytest.raises(InputError, match="is not there"):
        open_statistics(out, moe_graph)


def test_moments_that_hold_no_numbers(written: Path, moe_graph: WeightGraph, tmp_path: Path) -> None:
    out = tmp_path / "stats"
    shutil.copytree(written, out)
    path = out / "moments/blk.0.ffn_down.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + np.float32(np.nan).tobytes())
    found = open_statistics(out, moe_graph)
    with pytest.raises(InputError, match="holds nan"):
        found.moments((Role.FFN_DOWN, 0))


def test_statistics_of_another_checkpoint(written: Path, tmp_path: Path, moe_graph: WeightGraph) -> None:
    """A fine-tune has the same shapes and names."""
    other = open_graph(make_checkpoint(tmp_path / "other", moe_config(), seed=1))
    with pytest.raises(InputError, match="statistics of another checkpoint than"):
        open_statistics(written, other)
    with pytest.raises(InputError, match=r"of another checkpoint than .*: of sha256"):
        open_statistics(written, moe_graph, checkpoint="0" * 64)
    with pytest.raises(InputError, match=r"has no statistics\.json"):
        open_statistics(tmp_path, moe_graph)


def test_statistics_of_a_model_that_is_planned_from_its_config(
    written: Path, tiny_moe: Path, tmp_path: Path, moe_graph: WeightGraph
) -> None:
    shutil.copy(tiny_moe / "config.json", tmp_path)
    found = open_statistics(written, open_graph(tmp_path, weights=False))
    address = Role.EXPERT_DOWN, 2
    assert np.array_equal(found.gradients(address), open_statistics(written, moe_graph).gradients(address))


def test_the_default_text(tiny_dense: Path, text: Path, tmp_path: Path) -> None:
    """It is what is run where no text is given, and the first of them where it is asked for."""
    base = ["calibrate", str(tiny_dense), "--chunk-size", "64", "--max-chunks", "6", "-o"]
    assert main([*base, str(tmp_path / "alone")]) == 0
    found = open_statistics(tmp_path / "alone", open_graph(tiny_dense))
    assert [each.name for each in found.texts] == ["calibration.jsonl"] and found.chunks[0][0] == 1
    assert (
        main([*base[:-3], "-o", str(tmp_path / "i.gguf"), "--default-text", "--text", str(text), "--max-chunks", "3"])
        == 0
    )
    assert read_importance(tmp_path / "i.gguf").datasets == ("calibration.jsonl", "words.txt")


def test_the_default_text_is_long_enough_and_shares_nothing_with_prompts() -> None:
    """No run of eight words, nor of twenty characters without spaces."""
    from lfm_convert.convert.calibration import chunks_of, sources_of
    from lfm_convert.validate.prompts import Prompt, load_prompts

    graph = pipeline.open_model("bundled:dense")
    (source,) = sources_of([], with_default=False)
    assert len(source.content.encode()) <= 150_000
    assert sum(len(chunk) for chunk in chunks_of(graph, source, 512, pytest.fail)) >= 16_000
    path = Path(pipeline.__file__).with_name("calibration.jsonl")

    def texts(prompt: Prompt) -> list[str]:
        found = [prompt.text or "", *(str(message.get("content") or "") for message in prompt.messages)]
        return [re.sub(r"<\|\w+\|>", "", text) for text in found]  # what marks a tool call is nobody's text

    def runs(prompt: Prompt) -> set[tuple[str, ...]]:
        found: set[tuple[str, ...]] = set()
        for whole in texts(prompt):
            words, characters = whole.split(), "".join(whole.split())
            found |= {tuple(words[i : i + 8]) for i in range(len(words) - 7)}
            found |= {(characters[i : i + 20],) for i in range(len(characters) - 19)}
        return found

    ours = set().union(*map(runs, load_prompts(path)))
    theirs = set().union(*map(runs, load_prompts()))
    assert len(ours) > 10_000 and len(theirs) > 2_000
    assert not ours & theirs


def test_a_full_disk(
    tiny_moe: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(spool: Spool, name: str, start: int, rows: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Spool, "write", write)
    refused(capsys, 7, "no space left", *command(tiny_moe, text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    monkeypatch.setattr("lfm_convert.quantize.statistics.gather.scratch_bytes", lambda graph, n_tokens: 1 << 60)
    refused(capsys, 7, "is free", *command(tiny_moe, text, tmp_path / "out"))
    assert not (tmp_path / "out").exists()
