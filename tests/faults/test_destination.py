"""One owner of a destination at a time, the user's files are the user's, and any place can be a destination."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.destination import owned, published_alone
from lfm_convert.convert.writing import Writing
from lfm_convert.graph.errors import InputError
from lfm_convert.targets import journal, stream
from support.checkpoints import dense_config, make_checkpoint

COMMAND = [sys.executable, "-P", "-m", "lfm_convert"]
Read = Callable[[Path], list[object]]


def _contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def _convert(model: Path, out: Path, quant: str = "Q8_0", *options: str, target: str = "gguf") -> list[str]:
    return [str(model), "--target", target, "--quant", quant, "--out", str(out), "--no-validate", *options]


# --- 1. one owner at a time ---


@contextmanager
def _building(out: Path) -> Iterator[Path]:
    """Another run in the middle of building `half` in a destination."""
    script = f"""
import sys
from pathlib import Path
from lfm_convert.convert.destination import owned, published_alone
out = Path({str(out)!r})
with owned(out) as destination, destination.stage() as staging:
    (staging.folder / "built").write_text("whole")
    print("building", flush=True)
    sys.stdin.read()
    with published_alone(out):
        staging.publish()
"""
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "building\n"
        yield out
        process.stdin.close()
        assert process.wait(timeout=30) == 0


SECOND: dict[str, tuple[Read, int]] = {
    "inspect": (lambda out: ["inspect", out], 0),
    "validate": (lambda out: ["validate", next(out.glob("*.gguf")), "--reference", "bundled:dense"], 0),
    "convert, refused at once": (lambda out: _convert(Path("bundled:dense"), out), 2),
    "convert": (lambda out: _convert(Path("bundled:dense"), out, "Q4_0"), 7),
}  # fmt: skip


@pytest.mark.parametrize("case", SECOND)
def test_a_second_command_leaves_a_running_conversion_alone(case: str, few: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_convert(Path("bundled:dense"), out)) == 0
    arguments, code = SECOND[case]
    with _building(out):
        more = ["--prompts", str(few)] if case == "validate" else []
        found = main([*map(str, arguments(out)), *more])
    assert (out / "built").read_text() == "whole"
    assert found in (code, 7)
    assert not list(out.glob(".lfm*"))


def test_a_verdict_is_added_to_what_another_run_publishes(few: Path, tmp_path: Path) -> None:
    """A manifest that was read before another artifact joined it is not written back."""
    out = tmp_path / "out"
    assert main(_convert(Path("bundled:dense"), out)) == 0
    process = subprocess.Popen([*COMMAND, *_convert(Path("bundled:dense"), out, "F32,F16,BF16,Q4_0")])
    assert main(
        ["validate", *map(str, out.glob("*Q8_0.gguf")), "--reference", "bundled:dense", "--prompts", str(few)]
    ) in (
        0,
        3,
    )
    assert process.wait(timeout=120) == 0
    entries = json.loads((out / "lfm-convert.json").read_text())["artifacts"]
    assert {e["quant"] for e in entries} == {"Q8_0", "F32", "F16", "BF16", "Q4_0"}
    assert [e["quant"] for e in entries if e["validation"]] == ["Q8_0"]


@pytest.mark.parametrize(("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")])  # fmt: skip
def test_a_signal_during_validation_says_what_was_published(
    number: signal.Signals, code: int, word: str, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    arguments = [argument for argument in _convert(Path("bundled:moe"), out) if argument != "--no-validate"]
    with subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True) as process:
        _wait_for(lambda: (out / "lfm-convert.json").is_file() and not (out / ".lfm-convert.lock").exists())
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(timeout=60) == code
    (artifact,) = find_artifacts(out)
    assert said.splitlines()[-1] == f"lfm-convert: {word}; published before that: {artifact.path}"


def test_a_signal_before_anything_is_published_says_so(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen(
        [*COMMAND, *_convert(Path("bundled:moe"), out, "Q3_K_L", "--refine")], stderr=subprocess.PIPE, text=True
    ) as process:
        _wait_for((out / ".lfm-partial" / "work.json").is_file)
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1] == "lfm-convert: interrupted; nothing was published"
        assert process.wait(timeout=60) == 130
    assert not out.exists()


@pytest.mark.parametrize("n_moved", range(3))
def test_an_interrupt_between_renames_finishes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_moved: int
) -> None:
    """What is published is never taken away by the clean-up."""
    moved: list[Path] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        moved.append(self)
        if len(moved) == n_moved + 1:
            raise KeyboardInterrupt
        return real(self, target)

    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(KeyboardInterrupt), owned(tmp_path / "out") as destination, destination.stage() as staging:
        for name in "abc":
            (staging.folder / name).write_text(name)
        with published_alone(destination.folder):
            staging.publish()
    assert _contents(tmp_path / "out") == {name: name.encode() for name in "abc"}


def _wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


# --- 2. the user's files are the user's ---


@pytest.fixture
def own_checkpoint(tmp_path: Path) -> Path:
    folder = make_checkpoint(tmp_path / "model", dense_config())
    (folder / "LICENSE").write_text("the model's license")
    return folder


@pytest.mark.parametrize("options", [[], ["--overwrite"]], ids=["plain", "overwrite"])
@pytest.mark.parametrize("way", ["same path", "link", "dots"])
def test_files_of_the_source_are_never_replaced(
    own_checkpoint: Path, tmp_path: Path, way: str, options: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    out = own_checkpoint
    if way == "link":
        out = tmp_path / "link"
        out.symlink_to(own_checkpoint)
    elif way == "dots":
        out = own_checkpoint / ".." / "model"
    before = _contents(own_checkpoint)
    assert main(_convert(own_checkpoint, out, "q4", *options, target="onnx")) == 2
    said = capsys.readouterr().err
    assert "config.json, generation_config.json" in said
    assert "the checkpoint's own" in said
    assert _contents(own_checkpoint) == before


def test_an_artifact_may_lie_beside_its_source(own_checkpoint: Path) -> None:
    """A GGUF needs no file of the source's name, but for a licence that is there already as it should be."""
    before = _contents(own_checkpoint)
    assert main(_convert(own_checkpoint, own_checkpoint)) == 0
    after = _contents(own_checkpoint)
    assert {name: after[name] for name in before} == before
    assert {Path(name).suffix for name in after.keys() - before.keys()} == {".gguf", ".json"}
    assert main(_convert(own_checkpoint, own_checkpoint, "Q8_0", "--overwrite")) == 0
    assert {name: _contents(own_checkpoint)[name] for name in before} == before


FOREIGN = {
    "onnx": ("q4", ["config.json", "LICENSE", "genai_config.json", "onnx/model_q4.onnx_data"]),
    "gguf": ("Q8_0", ["LICENSE"]),
    "mlx": ("4bit", ["model-4bit/config.json", "model-4bit/README.md", "model-4bit/model.safetensors"]),
    "executorch": ("fp32", ["config.json", "tokenizer.json"]),
    "coreml": ("int8", ["config.json", "model_config.json", "model-int8.mlpackage/Manifest.json"]),
    "compressed-tensors": ("W4A16", ["model-W4A16/config.json", "model-W4A16/model.safetensors"]),
}


@pytest.mark.parametrize("target", FOREIGN)
def test_files_of_the_user_need_overwrite(
    own_checkpoint: Path, tmp_path: Path, target: str, capsys: pytest.CaptureFixture[str]
) -> None:
    quant, names = FOREIGN[target]
    for name in names:
        out = tmp_path / name.replace("/", "-")
        mine = out / name
        mine.parent.mkdir(parents=True, exist_ok=True)
        mine.write_text("mine")
        assert main(_convert(own_checkpoint, out, quant, target=target)) == 2
        said = capsys.readouterr().err
        assert name in said
        assert "--overwrite" in said
        assert _contents(out) == {name: b"mine"}
        if target != "executorch":
            assert main(_convert(own_checkpoint, out, quant, "--overwrite", target=target)) == 0
            assert mine.read_bytes() != b"mine"


def test_our_own_shared_files_are_replaced_until_somebody_changes_them(own_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out, "q4", target="onnx")) == 0
    assert main(_convert(own_checkpoint, out, "q8", target="onnx")) == 0  # config.json lists one graph more
    config = out / "config.json"
    config.write_text(config.read_text() + "\n")
    before = _contents(out)
    assert main(_convert(own_checkpoint, out, "fp32", target="onnx")) == 2
    assert _contents(out) == before


def test_a_manifest_of_before_shared_files_were_noted_is_read(own_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out, "q4", target="onnx")) == 0
    manifest = json.loads((out / "lfm-convert.json").read_text())
    del manifest["shared"]
    (out / "lfm-convert.json").write_text(json.dumps(manifest))
    assert main(_convert(own_checkpoint, out, "q8", target="onnx")) == 0
    assert len(find_artifacts(out)) == 2


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_an_older_manifest_of_another_target_owns_no_shared_file(
    name: str, own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out)) == 0
    manifest = json.loads((out / "lfm-convert.json").read_text())
    del manifest["shared"]
    (out / "lfm-convert.json").write_text(json.dumps(manifest))
    (out / name).write_text("mine")
    before = _contents(out)
    assert main(_convert(own_checkpoint, out, "q8", target="onnx")) == 2
    assert f"{name} is there, not as lfm-convert wrote it" in capsys.readouterr().err
    assert _contents(out) == before


@pytest.mark.parametrize(("target", "quant", "name"), [("gguf", "Q8_0", "*.gguf"), ("onnx", "q8", "config.json")])
def test_a_file_that_appears_meanwhile_is_the_users(
    target: str, quant: str, name: str, own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(_convert(own_checkpoint, tmp_path / "first", quant, target=target)) == 0
    mine = tmp_path / "out" / next((tmp_path / "first").glob(name)).name
    write = Writing._write

    def slow(self: Writing, *arguments: object) -> object:
        written = write(self, *arguments)
        mine.write_text("mine")
        return written

    monkeypatch.setattr(Writing, "_write", slow)
    assert main(_convert(own_checkpoint, tmp_path / "out", quant, target=target)) == 2
    assert _contents(tmp_path / "out") == {mine.name: b"mine"}


# --- 3. any place can be a destination ---


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Callable[[Path, str], None]]:
    """Mounts a small file system of its own on a folder."""
    places: list[Path] = []

    def mount(place: Path, options: str) -> None:
        place.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", place], capture_output=True, check=False)
        if done.returncode:
            pytest.skip("this machine lets nobody mount a file system")
        places.append(place)

    yield mount
    for place in reversed(places):
        subprocess.run(["umount", "-l", place], check=False)


@pytest.mark.parametrize("way", ["mount point", "link to it", "mount inside", "missing folder behind a link"])
def test_other_devices(own_checkpoint: Path, tmp_path: Path, way: str, mounted: Callable[[Path, str], None]) -> None:
    disk, out = tmp_path / "disk", tmp_path / "out"
    mounted(disk, "size=80m")
    if way == "mount point":
        out = disk
    elif way == "link to it":
        out.symlink_to(disk)
    elif way == "missing folder behind a link":
        out.symlink_to(disk / "deep" / "folder")
    else:
        mounted(out / "onnx", "size=80m")
    assert main(_convert(own_checkpoint, out, "q4,q8", target="onnx")) == 0
    assert len(find_artifacts(out)) == 2
    assert not list(out.rglob(".lfm*"))


def test_room_is_measured_where_the_files_go(
    own_checkpoint: Path, tmp_path: Path, mounted: Callable[[Path, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    mounted(tmp_path / "out", "size=1m")
    assert main(_convert(own_checkpoint, tmp_path / "out")) == 7
    assert "is free" in capsys.readouterr().err
    assert list((tmp_path / "out").iterdir()) == []


def test_a_disk_that_fills_on_the_way(
    own_checkpoint: Path,
    tmp_path: Path,
    mounted: Callable[[Path, str], None],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As if another process had taken the room after it was measured."""
    from lfm_convert.convert.destination import Destination

    out = tmp_path / "out"
    mounted(out, "size=1m")
    assert main(_convert(own_checkpoint, out, "Q2_K", "--overwrite")) in (0, 7)
    before = _contents(out)
    capsys.readouterr()
    monkeypatch.setattr(Destination, "need", lambda *_: None)
    assert main(_convert(own_checkpoint, out, "F32")) == 7
    assert "no space left" in capsys.readouterr().err
    assert _contents(out) == before


def test_a_read_only_folder_can_be_validated(
    own_checkpoint: Path,
    few: Path,
    tmp_path: Path,
    mounted: Callable[[Path, str], None],
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    mounted(out, "size=80m")
    assert main(_convert(Path("bundled:dense"), out)) == 0
    subprocess.run(["mount", "-o", "remount,ro", out], check=True)
    before = _contents(out)
    report = tmp_path / "report.json"
    arguments = ["validate", str(out), "--reference", "bundled:dense", "--prompts", str(few), "--json", str(report)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    assert "the verdict is not recorded" in captured.err
    assert "Q8_0" in captured.out
    assert json.loads(report.read_text())["artifacts"][0]["verdict"] == "pass"
    assert _contents(out) == before


def test_a_folder_that_leads_out_is_refused(own_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "onnx").symlink_to(tmp_path / "elsewhere")
    assert main(_convert(own_checkpoint, tmp_path / "out", "q4", target="onnx")) == 7
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_record_that_came_with_a_folder_moves_nothing_outside(own_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out)) == 0
    (tmp_path / "precious").write_text("mine")
    for moves, remove in (({"../precious": ".lfm-partial/new/a"}, []), ({}, ["../precious"])):
        (out / ".lfm-partial" / "new").mkdir(parents=True, exist_ok=True)
        (out / ".lfm-partial" / "new" / "a").write_text("theirs")
        (out / ".lfm-partial" / "commit.json").write_text(json.dumps({"moves": moves, "remove": remove}))
        assert main(["inspect", str(out)]) == 7
        assert (tmp_path / "precious").read_text() == "mine"


# --- one artifact after the other, skipping and resuming ---


def test_finished_quants_survive_a_failure(
    own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The third quant cannot hold a value: the first two are there."""
    from support.safetensors_files import edit_tensors, float32

    name = "model.layers.0.feed_forward.w1.weight"

    def poison(tensors: dict) -> None:
        import numpy as np

        tensors[name] = float32(np.full((256, 128), 1e6, np.float32))

    edit_tensors(own_checkpoint / "model.safetensors", poison)
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out, "fp32,q4,fp16", target="onnx")) == 5
    said = capsys.readouterr().err
    assert f"published before that: {out / 'onnx/model.onnx'}, {out / 'onnx/model_q4.onnx'}" in said
    assert [a.quant for a in find_artifacts(out)] == ["fp32", "q4"]


def test_skip_existing(own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out, "Q8_0")) == 0
    before = {path: path.stat().st_mtime_ns for path in out.glob("*.gguf")}
    assert main(_convert(own_checkpoint, out, "all")) == 2
    assert main(_convert(own_checkpoint, out, "all", "--skip-existing")) == 0
    assert "is there already and is left as it is" in capsys.readouterr().err
    assert len(find_artifacts(out)) == 20
    assert {path: path.stat().st_mtime_ns for path in before} == before


STALE: dict[str, tuple[Callable[[Path, Path], object], str]] = {
    "another checkpoint": (
        lambda model, out: make_checkpoint(model, dense_config(), seed=5),
        "it was made from another checkpoint",
    ),
    "damaged": (
        lambda model, out: next(out.glob("*.gguf")).write_bytes(bytes(next(out.glob("*.gguf")).stat().st_size)),
        "its files are not those that were written",
    ),
    "another template": (
        lambda model, out: (model / "chat_template.jinja").write_text("{{ bos_token }}{{ messages[0].content }}"),
        "another chat template",
    ),
    "other stops": (
        lambda model, out: (model / "generation_config.json").write_text('{"eos_token_id": 3}'),
        "other settings",
    ),
    "not ours": (lambda model, out: (out / "lfm-convert.json").unlink(), "does not know it"),
}


@pytest.mark.parametrize("case", STALE)
@pytest.mark.parametrize("option", ["--skip-existing", "--resume"])
def test_what_is_there_is_skipped_only_if_it_is_right(
    case: str, option: str, own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out)) == 0
    damage, sentence = STALE[case]
    damage(own_checkpoint, out)
    before = _contents(out)
    assert main(_convert(own_checkpoint, out, "Q8_0", option)) == 2
    assert sentence in capsys.readouterr().err
    assert _contents(out) == before


def test_another_importance_of_the_same_name_is_seen(
    own_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    matrices = []
    for words in ("hello world this is a text", "completely other words"):
        text = tmp_path / "text.txt"
        text.write_text(words)
        matrices.append(tmp_path / words.split()[0] / "imatrix.gguf")
        assert main(["calibrate", str(own_checkpoint), "--text", str(text), "--out", str(matrices[-1])]) == 0
    out = tmp_path / "out"
    assert main(_convert(own_checkpoint, out, "Q4_K_M", "--imatrix", str(matrices[0]))) == 0
    assert main(_convert(own_checkpoint, out, "Q4_K_M", "--imatrix", str(matrices[0]), "--skip-existing")) == 0
    before = _contents(out)
    assert main(_convert(own_checkpoint, out, "Q4_K_M", "--imatrix", str(matrices[1]), "--skip-existing")) == 2
    assert "other importance" in capsys.readouterr().err
    assert _contents(out) == before


RESUMED = [("gguf", "Q4_K_M"), ("gguf", "Q8_0"), ("onnx", "q4f16"), ("onnx", "fp16"), ("mlx", "4bit")]


@pytest.mark.parametrize(("target", "quant"), RESUMED)
def test_resume_gives_the_bytes_of_an_uninterrupted_run(
    target: str, quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, out = tmp_path / "whole", tmp_path / "out"
    convert("bundled:moe", target=target, quant=quant, out=whole, validate_after=False)
    real = stream._Writer._encode
    n_encoded = 0

    def encode(self: stream._Writer, *arguments: object) -> None:
        nonlocal n_encoded
        n_encoded += 1
        if n_encoded == 40:
            raise KeyboardInterrupt
        real(self, *arguments)

    monkeypatch.setattr(stream._Writer, "_encode", encode)
    with pytest.raises(KeyboardInterrupt):
        convert("bundled:moe", target=target, quant=quant, out=out, validate_after=False, resume=True, jobs=1)
    assert (out / ".lfm-partial" / "journal").is_file()
    n_encoded = 1000
    convert("bundled:moe", target=target, quant=quant, out=out, validate_after=False, resume=True, jobs=1)
    n_second = n_encoded - 1000
    assert _contents(out) == _contents(whole)
    n_encoded = 1000
    convert("bundled:moe", target=target, quant=quant, out=tmp_path / "again", validate_after=False, jobs=1)
    assert n_second <= n_encoded - 1000 - 39  # what was written is not encoded again


def test_parts_are_taken_over_only_if_they_read_as_written(tmp_path: Path) -> None:
    path = tmp_path / "data"
    data = random.Random(0).randbytes((2 << 20) + 113)  # a part longer than what is read at once
    path.write_bytes(data)
    first = journal.Journal(tmp_path / "journal")
    first.add("0:0:1", [memoryview(data)[:10], memoryview(data)[50:]])
    first.close()
    with (tmp_path / "journal").open("a") as file:
        file.write("0:1:2 12")  # cut short by a kill
    descriptor = os.open(path, os.O_RDWR)
    second = journal.Journal(tmp_path / "journal")
    places = [(descriptor, 0, 10), (descriptor, 50, len(data) - 50)]
    assert second.holds("0:0:1", places)
    assert not second.holds("0:1:2", places)
    os.pwrite(descriptor, bytes(4096), 1 << 20)  # a page that never came to the disk
    assert not second.holds("0:0:1", places)
    os.close(descriptor)
    second.close()


def test_another_source_resumes_nothing(own_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(stream, "_check", lambda *_: (_ for _ in ()).throw(InputError("stopped")))
    with pytest.raises(InputError):
        convert(str(own_checkpoint), target="gguf", quant="F32", out=out, validate_after=False, resume=True)
    monkeypatch.undo()
    work = (out / ".lfm-partial" / "work.json").read_text()
    make_checkpoint(own_checkpoint, dense_config(), seed=9)
    convert(str(own_checkpoint), target="gguf", quant="F32", out=out, validate_after=False, resume=True)
    assert work
    fresh = tmp_path / "fresh"
    convert(str(own_checkpoint), target="gguf", quant="F32", out=fresh, validate_after=False)
    assert _contents(out) == _contents(fresh)


# --- names of files ---


@pytest.mark.parametrize("option", ["--outfile", "--out"])
def test_a_gguf_can_be_given_its_name(option: str, own_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(own_checkpoint), "-t", "gguf", "-q", "Q8_0", "--no-validate"]
    assert main([*arguments, option, str(tmp_path / "deep" / "mine.gguf")]) == 0
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"mine.gguf", "lfm-convert.json", "LICENSE"}
    (artifact,) = find_artifacts(tmp_path / "deep" / "mine.gguf")
    assert artifact.quant == "Q8_0"


def test_one_name_for_two_quants_is_refused(own_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(own_checkpoint), "-t", "gguf", "-q", "Q8_0,Q4_0", "--no-validate", "--outfile"]
    assert main([*arguments, str(tmp_path / "mine.gguf")]) == 2
    assert not list(tmp_path.glob("*.gguf"))
    assert main([*arguments, str(tmp_path / "mine-{ftype}.gguf")]) == 0
    assert {path.name for path in tmp_path.glob("*.gguf")} == {"mine-Q8_0.gguf", "mine-Q4_0.gguf"}


@pytest.mark.parametrize(("target", "name"), [("gguf", "mine.bin"), ("onnx", "mine.onnx")])
def test_a_name_the_format_has_not_is_refused(target: str, name: str, own_checkpoint: Path, tmp_path: Path) -> None:
    assert main([str(own_checkpoint), "-t", target, "--no-validate", "--outfile", str(tmp_path / "o" / name)]) == 2
    assert not (tmp_path / "o").exists()
