"""Text from outside is only text: brackets, controls and any encoding, in names, paths, cards, licences and consoles."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from lfm_convert.convert import bundled, convert, pipeline
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.assets import read_assets
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.targets.gguf.target import GgufTarget
from lfm_convert.targets.target import get_target, target_names

CLI = [sys.executable, "-m", "lfm_convert"]
NAME = "My [bold]tiny[!a] model"
FIT = "My--bold-tiny-!a--model"
CARD = "---\nlicense: other\nlicense_name: lfm1.0 é\n---\n# Prose\n"
ASCII = {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
CONSOLES = {
    "ascii": ASCII,
    "cp1252": {**ASCII, "PYTHONIOENCODING": "cp1252"},
    "C locale": {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"},
    "utf-8": {"PYTHONIOENCODING": "utf-8"},
}


@pytest.fixture
def bracketed(tmp_path: Path) -> Path:
    """A checkpoint whose name and folder hold what consoles and shells act on."""
    return shutil.copytree(bundled.path("dense"), tmp_path / "a [b]" / "c[0-9]" / NAME)


@pytest.mark.parametrize(
    "target", [pytest.param(t, marks=[pytest.mark.slow] if t == "executorch" else []) for t in target_names()]
)
def test_brackets_in_paths_and_names(
    target: str, bracketed: Path, few: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Written, run in its runtime from a folder that is a pattern to a shell, and inspected."""
    monkeypatch.chdir(bracketed.parent)
    quant = get_target(target).default_quant
    assert main([NAME, "-t", target, "--no-validate"]) == 0, capsys.readouterr().err
    folder = bracketed.parent / f"{FIT}-{target.upper()}"
    capsys.readouterr()
    assert main(["validate", str(folder), "-r", str(bracketed), "--prompts", str(few)]) == 0
    assert main(["inspect", str(folder)]) == 0
    (artifact,) = pipeline.find_artifacts(folder)
    for file in artifact.files:
        assert not set(file.relative_to(folder).as_posix()) & set('[]*?"<>|:\\ '), file
    if target in ("mlx", "executorch"):
        assert artifact.label.removesuffix(".pte") == f"{FIT}-{quant}"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b:c", "a-b-c"),
        (".hidden", "hidden"),
        ("x\ny\x1b[0m", "x-y--0m"),
        ("[]", "model"),
        ("é", "é"),
        (" ", "model"),
    ],
)
def test_one_rule_for_all_names(name: str, expected: str, tiny_dense: Path) -> None:
    graph = open_graph(tiny_dense, name=name)
    assert get_target("mlx").plan(graph, "8bit").main_file == f"{expected}-8bit/config.json"
    assert get_target("executorch").plan(graph, "8da4w").main_file == f"{expected}-8da4w.pte"


def test_a_long_name_leaves_room(tiny_dense: Path) -> None:
    graph = open_graph(tiny_dense, name="é" * 300)
    for target, quant in (("mlx", "8bit"), ("executorch", "8da4w"), ("gguf", "Q8_0")):
        (name, *_) = get_target(target).plan(graph, quant).main_file.split("/")
        assert 150 < len(name.encode()) <= 210 and quant in name


def test_a_name_that_is_no_utf8(tiny_dense: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"m\xe9l")
    shutil.copytree(tiny_dense, folder)
    environment = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    for target, quant in (("gguf", "Q8_0"), ("mlx", "8bit")):
        command = [*CLI, folder, "-t", target, "-q", quant, "--out", tmp_path / target, "--no-validate", "--json", "-"]
        done = subprocess.run([os.fsencode(part) for part in command], capture_output=True, env=environment)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["artifacts"]


def test_mlx_loads_from_a_folder_that_is_no_utf8(tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / os.fsdecode(b"m\xe9l")
    done = convert(str(tiny_dense), target="mlx", quant="8bit", out=out)
    assert done.report is not None
    assert done.report.results[0].stops is not None
    assert "refuses" not in done.report.results[0].message


def test_a_file_is_named_in_utf8(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    outfile = str(tmp_path / os.fsdecode(b"m\xe9l.gguf"))
    assert main([str(tiny_dense), "-t", "gguf", "-q", "Q8_0", "--outfile", outfile, "--no-validate"]) == 2
    assert "expected a name in UTF-8" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["[/bold]", "[/]", "[link=x]", "[red]x[/red]", ":smiley:", "\x1b]0;title\x07\x9b2J"])
def test_markup_and_controls_in_metadata_are_shown(
    text: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--metadata", f"general.description=a{text}b", "--out", str(tmp_path / "out"), "--no-validate"]
    assert main([str(tiny_dense), "-t", "gguf", "-q", "Q8_0", *arguments]) == 0
    capsys.readouterr()
    (file,) = (tmp_path / "out").glob("*.gguf")
    assert read_gguf(file).metadata["general.description"] == f"a{text}b"
    assert main(["inspect", str(file)]) == 0
    said = capsys.readouterr().out
    assert f"a{text}b".replace("\x1b", "\\x1b").replace("\x07", "\\x07").replace("\x9b", "\\x9b") in said
    assert main(["plan", f"no[/x]{text}", "-t", "gguf"]) == 5
    said = capsys.readouterr().err
    assert "no[/x]" in said and "\x1b" not in said


def test_markup_in_a_template_and_in_notes(
    tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "model")
    (folder / "chat_template.jinja").write_text("[/INST]{% for m in messages %}[b]{{ m.content }}{% endfor %}")
    assert main([str(folder), "-t", "gguf", "-q", "F32", "--out", str(tmp_path / "out"), "--no-validate"]) == 0
    (file,) = (tmp_path / "out").glob("*.gguf")
    capsys.readouterr()
    assert main(["inspect", str(file)]) == 0
    assert "[/INST]{% for" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["doctor", "targets"])
def test_pip_lines_are_whole(command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    line = 'pip install "lfm-convert[gguf]"'
    monkeypatch.setattr(GgufTarget, "missing", lambda self: line)
    assert main([command]) == 0
    assert line in capsys.readouterr().out


@pytest.mark.parametrize(
    "console", [pytest.param(name, marks=[] if name == "C locale" else [pytest.mark.slow]) for name in CONSOLES]
)
def test_any_console(console: str, tiny_dense: Path, few: Path, tmp_path: Path) -> None:
    """Tables, notes, errors, help and JSON reach a console that has few letters."""
    folder = shutil.copytree(tiny_dense, tmp_path / "été 漢字–…")
    out = tmp_path / "out é漢"
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL")}

    def run(*arguments: object, code: int = 0) -> subprocess.CompletedProcess[bytes]:
        command = [os.fsencode(str(part)) for part in (*CLI, *arguments)]
        done = subprocess.run(command, capture_output=True, env={**environment, **CONSOLES[console]})
        assert done.returncode == code, done.stderr
        assert b"UnicodeEncodeError" not in done.stderr and b"PYTHONIOENCODING" not in done.stderr
        return done

    made = json.loads(run(folder, "-t", "gguf", "-q", "Q8_0", "--out", out, "--json", "-", "--no-validate").stdout)
    if console != "C locale":  # where a path is bytes that are no text
        assert made["folder"] == str(out)
    table = run("validate", out, "-r", folder, "--prompts", few).stdout
    assert b"Q8_0" in table
    json.loads(run("validate", out, "-r", folder, "--prompts", few, "--json", "-").stdout)
    for kind in ("--html", "--markdown", "--junit"):
        assert run("validate", out, "-r", folder, "--prompts", few, kind, "-").stdout.decode("utf-8")
    json.loads(run("inspect", folder, "--json").stdout)
    for arguments in (("inspect", folder), ("inspect", out), ("targets",), ("doctor",), ("calibrate", "--help")):
        assert run(*arguments).stdout
    assert b"not found" in run("inspect", f"{folder}–x", code=5).stderr


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "latin-1"])
def test_cards_in_any_encoding(encoding: str, tiny_dense: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "model")
    (folder / "README.md").write_bytes(CARD.encode(encoding))
    done = pipeline.convert(str(folder), target="gguf", quant="Q8_0", out=tmp_path / "out", validate_after=False)
    metadata = read_gguf(done.artifacts[0].path).metadata
    assert (metadata["general.license"], metadata["general.license.name"]) == ("other", "lfm1.0 é")
    assert "license_name: lfm1.0 é" in get_target("mlx").plan(open_graph(folder), "8bit").details["README.md"].decode()


@pytest.mark.parametrize(
    "data", [CARD.encode() + b"x\xc3\xa9" * (2 << 20), b"\xff" * 100, b"\0" * 5000, b"", b"\xff\xfe"]
)
def test_a_card_stops_nothing(data: bytes, tiny_dense: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "model")
    (folder / "README.md").write_bytes(data)
    assert pipeline.plan(str(folder), target="gguf") and pipeline.plan(str(folder), target="mlx")
    card = read_assets(folder).model_card
    assert card is not None and len(card.encode("utf-8", "replace")) <= 4 << 20
    assert card.startswith("---\nlicense") or len(data) < 10_000
    (folder / "README.md").unlink()
    (folder / "README.md").mkdir()
    assert read_assets(folder).model_card is None


LICENSES = {
    "latin-1": "Lizenz für alle\r\n".encode("latin-1"),
    "utf-16": "Lizenz für alle".encode("utf-16"),
    "bom": b"\xef\xbb\xbfLicense\r\n",
    "5 MB": b"\xe9 words\r\n" * 650_000,
    "empty": b"",
}


@pytest.mark.parametrize("kind", LICENSES)
@pytest.mark.parametrize("target", target_names())
def test_a_license_is_copied_byte_for_byte(kind: str, target: str, tiny_dense: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tiny_dense, tmp_path / "model")
    (folder / "LICENSE").write_bytes(LICENSES[kind])
    if target == "executorch":
        (plan,) = pipeline.plan(str(folder), target=target)
        assert get_target(target).shared_files(open_graph(folder), [plan])["LICENSE"] == LICENSES[kind]
        return
    pipeline.convert(str(folder), target=target, out=tmp_path / "out", validate_after=False)
    (copied,) = (tmp_path / "out").rglob("LICENSE")
    assert copied.read_bytes() == LICENSES[kind]
