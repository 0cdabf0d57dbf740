"""Reports go where they are told to: into pipes, through links, to standard output; folders are made before the run."""

from __future__ import annotations

import json
import os
import shlex
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.artifacts import find_artifacts, verified
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.progress import SILENT

KINDS = ("--json", "--html", "--junit", "--markdown")
CLI = [sys.executable, "-m", "lfm_convert"]
Validate = Callable[..., int]


@pytest.fixture(scope="module")
def validate(tiny_dense: Path, few: Path, tmp_path_factory: pytest.TempPathFactory) -> Validate:
    """Runs `validate` with more arguments on an artifact that lies there."""
    out = tmp_path_factory.mktemp("reports") / "out"
    assert main([str(tiny_dense), "-t", "onnx", "-q", "fp32", "--out", str(out), "--no-validate"]) == 0
    fixed = ["validate", str(out), "--reference", str(tiny_dense), "--prompts", str(few)]
    return lambda *more: main([*fixed, *map(str, more)])


@pytest.fixture
def no_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing may be opened: what is refused is refused before."""

    def opened(*_: object, **__: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr(pipeline, "open_model", opened)


def read_back(kind: str, text: str) -> None:
    """Fails unless the text is one document of its kind and nothing else."""
    if kind == "--json":
        assert json.loads(text)["artifacts"]
    elif kind == "--junit":
        assert ElementTree.fromstring(text).tag == "testsuites"
    elif kind == "--html":
        assert text.startswith("<!") and text.rstrip().endswith("</html>")
    else:
        assert text.startswith("### ") and "verdict" not in text


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["-", "/dev/stdout"])
def test_stdout_gets_the_document_alone(
    validate: Validate, kind: str, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert validate(kind, name) == 0
    read_back(kind, capfd.readouterr().out)
    assert not Path("-").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_a_pipe_is_written_into(validate: Validate, kind: str, tmp_path: Path) -> None:
    pipe, read = tmp_path / "pipe", []
    os.mkfifo(pipe)
    reader = threading.Thread(target=lambda: read.append(pipe.read_text(encoding="utf-8")), daemon=True)
    reader.start()
    assert validate(kind, pipe) == 0
    reader.join(timeout=10)
    assert stat.S_ISFIFO(pipe.stat().st_mode), "a regular file was put in its place"
    read_back(kind, read[0])


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_stays_a_link(validate: Validate, kind: str, tmp_path: Path) -> None:
    real, link = tmp_path / "far" / "real", tmp_path / "link"
    real.parent.mkdir()
    real.write_text("old")
    real.chmod(0o640)
    link.symlink_to(real)
    assert validate(kind, link) == 0
    assert link.is_symlink()
    assert stat.S_IMODE(real.stat().st_mode) == 0o640
    read_back(kind, real.read_text(encoding="utf-8"))
    assert [p.name for p in real.parent.iterdir()] == ["real"]


def test_an_open_file_is_written_into(tiny_dense: Path, few: Path, tmp_path: Path) -> None:
    """`/dev/fd/N` of a pipe, as a shell's process substitution names it."""
    out = tmp_path / "out"
    assert main([str(tiny_dense), "-t", "onnx", "-q", "fp32", "--out", str(out), "--no-validate"]) == 0
    reading, writing = os.pipe()
    command = [*CLI, "validate", out, "--reference", tiny_dense, "--prompts", few, "--junit", f"/dev/fd/{writing}"]
    done = subprocess.run([str(part) for part in command], pass_fds=[writing], capture_output=True, check=False)
    os.close(writing)
    assert done.returncode == 0, done.stderr
    with os.fdopen(reading, encoding="utf-8") as file:
        read_back("--junit", file.read())


def test_one_document_at_most_goes_to_stdout(
    validate: Validate, no_run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate("--json", "-", "--html", "/dev/stdout") == 2
    assert "standard output is named for two reports" in capsys.readouterr().err


def test_two_reports_to_one_file_are_refused(
    validate: Validate, no_run: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert validate("--json", tmp_path / "r", "--html", tmp_path / "r") == 2
    assert "is named for two reports" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", [*KINDS, "--update-baseline"])
def test_the_folder_is_made(validate: Validate, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "report"
    assert validate(*(["--update-baseline", "--baseline", path] if kind == "--update-baseline" else [kind, path])) == 0
    assert path.stat().st_size


@pytest.mark.parametrize("kind", [*KINDS, "--update-baseline"])
@pytest.mark.parametrize(("name", "reason"), [("file/report", "cannot be written"), ("folder", "is a folder")])
def test_what_cannot_be_written_is_refused_before_the_run(
    validate: Validate,
    no_run: None,
    kind: str,
    name: str,
    reason: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    path = tmp_path / name
    more = ["--update-baseline", "--baseline", path] if kind == "--update-baseline" else [kind, path]
    assert validate(*more) in (5, 7)
    said = capsys.readouterr().err
    assert str(path) in said and (reason in said or kind == "--update-baseline")
    assert (tmp_path / "file").read_text() == "mine" and not list((tmp_path / "folder").iterdir())


def test_a_malformed_baseline_is_refused_before_the_run(validate: Validate, no_run: None, tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text("{}")
    assert validate("--update-baseline", "--baseline", path) == 5
    assert path.read_text() == "{}"


def test_calibrate_replaces_nothing_unasked(
    tiny_dense: Path, no_run: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "imatrix.gguf"
    text.write_text("Boats leave the quay. " * 20)
    out.write_bytes(b"mine")
    assert main(["calibrate", str(tiny_dense), "--text", str(text), "-o", str(out)]) == 2
    assert f"{out}: already exists; --overwrite replaces it" in capsys.readouterr().err
    assert out.read_bytes() == b"mine"
    assert main(["calibrate", str(tiny_dense), "--text", str(text), "-o", str(text / "x.gguf")]) == 7
    assert main(["calibrate", str(tiny_dense), "--text", str(text), "-o", str(tmp_path)]) == 2
    assert "holds imatrix.gguf and no statistics.json" in capsys.readouterr().err
    assert main(["calibrate", str(tiny_dense), "--text", str(text), "-o", "-", "--json"]) == 2


def test_calibrate_writes_where_it_is_told(
    tiny_dense: Path, tmp_path: Path, capfdbinary: pytest.CaptureFixture[bytes]
) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "new" / "imatrix.gguf"
    text.write_text("Boats leave the quay. " * 20)
    command = ["calibrate", str(tiny_dense), "--text", str(text), "-o"]
    assert main([*command, str(out)]) == 0
    capfdbinary.readouterr()
    first = out.read_bytes()
    out.write_bytes(b"old")
    assert main([*command, str(out), "--overwrite"]) == 0
    assert out.read_bytes() == first
    capfdbinary.readouterr()
    assert main([*command, "-"]) == 0
    assert capfdbinary.readouterr().out == first


@pytest.mark.parametrize("kind", ["lfm-convert.json", "artifact", "prompts"])
def test_a_report_replaces_nothing_that_is_read(
    kind: str, tiny_dense: Path, tmp_path: Path, no_run: None, capsys: pytest.CaptureFixture[str]
) -> None:
    artifact, prompts, manifest = (tmp_path / name for name in ("a.gguf", "prompts.jsonl", "lfm-convert.json"))
    for path in (artifact, prompts, manifest):
        path.write_text("mine")
    report = {"artifact": artifact, "prompts": prompts}.get(kind, manifest)
    assert main(["validate", str(artifact), "--prompts", str(prompts), "--json", str(report)]) == 2
    assert "the report would replace it" in capsys.readouterr().err
    assert report.read_text() == "mine"


STREAMS = {
    "stdout closed": (">&-", 0, ""),
    "both closed": (">&- 2>&-", 0, ""),
    "notes to a full disk": ("2>/dev/full", 0, ""),
    "output to a full disk": (">/dev/full", 7, "standard output: cannot be written"),
    "nobody reads": ("| true; exit ${PIPESTATUS[0]}", 0, ""),
    "nobody reads notes": ("2>&1 | true; exit ${PIPESTATUS[0]}", 0, ""),
}


@pytest.mark.parametrize("case", STREAMS)
@pytest.mark.parametrize("more", ["", "--json=-"])
def test_standard_streams_change_no_work(case: str, more: str, tiny_dense: Path, tmp_path: Path) -> None:
    redirection, code, sentence = STREAMS[case]
    command = [*CLI, str(tiny_dense), "-t", "gguf", "-q", "Q8_0", "--out", str(tmp_path / "out"), "--no-validate"]
    line = f"{shlex.join([*command, *([more] if more else [])])} {redirection}"
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert sentence in done.stderr
    assert verified(find_artifacts(tmp_path / "out"), SILENT)


def test_the_exit_code_outlives_standard_error(tmp_path: Path) -> None:
    line = f"{shlex.join([*CLI, 'plan', str(tmp_path), '-t', 'gguf'])} 2>/dev/full"
    assert subprocess.run(["bash", "-c", line]).returncode == 5
