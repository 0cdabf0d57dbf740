"""`convert` tells what `validate` tells: reports, lines and baselines in one command."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from lfm_convert.convert.cli.main import app, main
from lfm_convert.convert.pipeline import convert as convert_model
from lfm_convert.graph.errors import UsageError
from typer.main import get_command

# Options that say what is told of a comparison, and what it is held to.
SHARED = {
    "--suite", "--prompts", "--text", "--chunks", "--threads", "--time-limit", "--max-kld", "--min-top1",
    "--max-ppl-change", "--json", "--html", "--junit", "--markdown", "--baseline", "--update-baseline",
    "--require-baseline", "--max-size", "--max-file-size", "--device", "--recipe",
}  # fmt: skip


@pytest.fixture(scope="module")
def out(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an artifact that was never run."""
    folder = tmp_path_factory.mktemp("made") / "out"
    convert_model(str(tiny_dense), target="onnx", quant="fp32", out=folder, validate_after=False)
    return folder


def _convert(model: Path, out: Path, *more: object) -> int:
    return main([str(model), "-t", "onnx", "-q", "fp32", "--out", str(out), "--suite", "smoke", *map(str, more)])


def test_convert_and_validate_declare_the_same_options() -> None:
    commands: Any = get_command(app)
    options = {
        name: {opt: (p.help, p.metavar, p.default) for p in commands.commands[name].params for opt in p.opts}
        for name in ("convert", "validate")
    }
    for option in SHARED:
        assert options["convert"][option] == options["validate"][option]


def test_every_report_of_convert(tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    paths = {kind: tmp_path / "reports" / f"report.{kind}" for kind in ("json", "html", "junit", "markdown")}
    out = tmp_path / "out"
    more = [word for kind, path in paths.items() for word in (f"--{kind}", path)]
    assert _convert(tiny_dense, out, *more, "--baseline", tmp_path / "b.json", "--update-baseline") == 0
    made = json.loads(paths["json"].read_text())
    found = made["validation"]
    (artifact,) = found["artifacts"]
    manifest = json.loads((out / "lfm-convert.json").read_text())
    files = manifest["artifacts"][0]["files"]
    assert (found["suite"], found["date"], found["model"]) == ("smoke", "2023-11-14T22:13:20Z", "tiny-dense")
    assert artifact["files"] == files and artifact["path"] == "onnx/model.onnx"
    assert len(artifact["sha256"]) == len(found["model_sha256"]) == 64
    assert artifact["seconds"] > 0 and found["tool"].startswith("lfm-convert ")
    assert [cases.get("time") for cases in ElementTree.parse(paths["junit"]).getroot()] == [str(artifact["seconds"])]
    for kind, path in paths.items():
        text = (
            path.read_text().replace(str(out), "") if kind == "json" else path.read_text()
        )  # `folder` is what was given
        assert found["date"] in text and found["model_sha256"][:12] in text and "smoke" in text
        assert files[0]["sha256"][:12] in text or artifact["sha256"][:12] in text
        assert str(tmp_path) not in text and str(tiny_dense.parent) not in text
    assert "tiny-dense | onnx | fp32" in (tmp_path / "b.json").read_text()
    recorded = manifest["artifacts"][0]["validation"]
    assert recorded["verdict"] == "pass" and not {"seconds", "path", "files"} & set(recorded)


def test_the_checkpoint_has_one_hash_for_convert_and_validate(tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert _convert(tiny_dense, out, "--json", tmp_path / "a.json") == 0
    assert (
        main(["validate", str(out), "-r", str(tiny_dense), "--suite", "smoke", "--json", str(tmp_path / "b.json")]) == 0
    )
    first, second = (json.loads((tmp_path / name).read_text()) for name in ("a.json", "b.json"))
    assert first["validation"]["model_sha256"] == second["model_sha256"]
    assert re.fullmatch("[0-9a-f]{64}", second["model_sha256"])


def test_json_of_convert_goes_to_stdout_alone(
    tiny_dense: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert _convert(tiny_dense, tmp_path / "out", "--json", "-", "--no-validate") == 0
    made = json.loads(capfd.readouterr().out)
    assert made["artifacts"][0]["files"] == ["onnx/model.onnx"] or "onnx/model.onnx" in made["artifacts"][0]["files"]


def test_what_passed_before_is_run_again_for_a_report(tiny_dense: Path, tmp_path: Path) -> None:
    out, html = tmp_path / "out", tmp_path / "r.html"
    assert _convert(tiny_dense, out) == 0
    assert _convert(tiny_dense, out, "--skip-existing") == 0
    assert _convert(tiny_dense, out, "--skip-existing", "--html", html) == 0
    assert "1 of 1 artifacts pass" in html.read_text()
    assert _convert(tiny_dense, out, "--skip-existing", "--min-top1", "100%", "--max-kld", "0") == 3


def test_a_line_fails_an_artifact(
    out: Path, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validate = ["validate", str(out), "-r", str(tiny_dense), "--suite", "smoke"]
    report = tmp_path / "r.json"
    assert main([*validate, "--max-kld", "0.2", "--min-top1", "90%", "--max-ppl-change", "0.05"]) == 0
    assert main([*validate, "--max-kld", "0", "--json", str(report)]) == 3
    said = capsys.readouterr().out
    assert "line_kld is" in said and "Your line, max-kld" in said
    gates = {gate["name"]: gate for gate in json.loads(report.read_text())["artifacts"][0]["gates"]}
    assert not gates["line_kld"]["passed"] and gates["line_kld"]["means"].startswith("Your line")


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (["--max-kld=-1"], "--max-kld is -1: expected nats"),
        (["--max-kld", "nan"], "--max-kld is nan"),
        (["--min-top1", "101%"], "--min-top1 is 1.01: expected a fraction like 0.9, or 90%"),
        (["--min-top1", "90"], "--min-top1 is 90"),
        (["--min-top1", "most"], "'most' is no fraction"),
        (["--max-ppl-change=-5%"], "--max-ppl-change is -0.05"),
        (["--require-baseline"], "--require-baseline needs --baseline"),
        (["--update-baseline"], "--update-baseline needs --baseline"),
        (["--baseline", "b.json", "--update-baseline", "--require-baseline"], "give one of them"),
    ],
)
@pytest.mark.parametrize("command", ["convert", "validate"])
def test_nonsense_is_refused(
    command: str, line: list[str], sentence: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = [str(tiny_dense), "-t", "onnx", "--out", str(tmp_path / "new")] if command == "convert" else [str(tmp_path)]
    assert main([command, *first, *line]) == 2
    assert sentence in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("more", ["--html=r.html", "--max-kld=1", "--baseline=b.json"])
def test_nothing_compared_is_nothing_to_report(
    more: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _convert(tiny_dense, tmp_path / "out", "--no-validate", more) == 2
    assert "--no-validate compares nothing" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_report_replaces_nothing_of_the_checkpoint(
    name: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = (tiny_dense / name).read_bytes()
    assert _convert(tiny_dense, tmp_path / "out", "--html", tiny_dense / name) == 2
    assert "the report would replace it" in capsys.readouterr().err
    assert (tiny_dense / name).read_bytes() == before and not (tmp_path / "out").exists()


def test_a_report_replaces_no_artifact(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    for name in ("lfm-convert.json", "onnx/model.onnx"):
        assert _convert(tiny_dense, out, "--overwrite", "--html", out / name) == 2
        assert "the report would replace it" in capsys.readouterr().err
    assert not (out / "onnx" / "model.onnx").read_bytes().startswith(b"<!doctype")


def test_without_a_baseline_entry(
    out: Path, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another number of threads is the same artifact; another quant has no entry, which nobody overlooks."""
    baseline, report = tmp_path / "b.json", tmp_path / "r.json"
    validate = ["validate", str(out), "-r", str(tiny_dense), "--suite", "smoke", "--json", str(report), "--baseline"]
    assert main([*validate, str(baseline), "--update-baseline", "--threads", "1"]) == 0
    assert main([*validate, str(baseline), "--require-baseline", "--threads", "2"]) == 0
    assert json.loads(report.read_text())["artifacts"][0]["baseline"] == "held"
    baseline.write_text(baseline.read_text().replace("| fp32 |", "| q4 |"))
    capsys.readouterr()
    assert main([*validate, str(baseline)]) == 0
    assert "no baseline entry" in capsys.readouterr().out
    assert json.loads(report.read_text())["artifacts"][0]["baseline"] == "no entry"
    assert main([*validate, str(baseline), "--require-baseline"]) == 3


def test_a_time_that_is_none_is_refused(
    out: Path, tiny_dense: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    assert main(["validate", str(out), "-r", str(tiny_dense)]) == 2
    assert "SOURCE_DATE_EPOCH is 'yesterday'" in capsys.readouterr().err


def test_with_a_baseline_the_suite_is_that_of_releases(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suites = []

    def convert(*_: object, comparison: dict[str, Any], **__: object) -> object:
        suites.append(comparison.get("suite"))
        raise UsageError("enough")

    monkeypatch.setattr("lfm_convert.convert.pipeline.convert", convert)
    command = [str(tiny_dense), "-t", "onnx", "-q", "fp32", "--out", str(tmp_path / "out")]
    baseline = ["--baseline", str(tmp_path / "b.json"), "--update-baseline"]
    for more in ([], baseline, [*baseline, "--suite", "smoke"]):
        assert main([*command, *more]) == 2
    assert suites == [None, "standard", "smoke"]


def test_a_recipe_that_is_a_pipe_is_read_once(
    tiny_dense: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("[gates]\nmax_kld = 0.0\n",), daemon=True)
    writer.start()
    assert main(["validate", str(out), "-r", str(tiny_dense), "--suite", "smoke", "--recipe", str(pipe)]) == 3


def test_lines_of_the_recipe_hold_without_being_asked_for(
    tiny_dense: Path, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of ./lfm-convert.toml, or of --recipe; an option of the command takes their place."""
    monkeypatch.chdir(tmp_path)
    recipe = tmp_path / "lfm-convert.toml"
    recipe.write_text("[gates.fp32]\nmax_kld = 0.0\n")
    validate = ["validate", str(out), "-r", str(tiny_dense), "--suite", "smoke"]
    assert main(validate) == 3
    assert main([*validate, "--max-kld", "1"]) == 0
    recipe.rename(tmp_path / "other.toml")
    assert main(validate) == 0
    assert main([*validate, "--recipe", "other.toml"]) == 3
    (tmp_path / "empty.toml").write_text("[devices.a]\nmax_size = 1\n")
    assert main([*validate, "--recipe", "empty.toml"]) == 2
    recipe.write_text("[gates]\nmax_kdl = 1\n")
    assert main(validate) == 5
