"""The commands as users type them: JSON, tables, exit codes, signals."""

from __future__ import annotations

import functools
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import main, on_signal
from support.safetensors_files import Tensor, edit_tensors

CLI = [sys.executable, "-m", "lfm_convert"]


def _json(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict:
    code = main([str(a) for a in arguments])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return json.loads(captured.out)


def test_plan_json(tiny_moe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = _json(capsys, "plan", tiny_moe, "--target", "onnx", "--quant", "q4f16", "--json")["plans"]
    assert {
        "target",
        "quant",
        "files",
        "tensor_bytes",
        "total_bytes",
        "peak_memory_bytes",
        "tensors",
        "fallbacks",
    } <= set(found)
    assert found["total_bytes"] == sum(file["bytes"] for file in found["files"])
    assert {"name", "role", "shape", "encoding", "bytes"} <= set(found["tensors"][0])


def test_convert_and_validate_json(tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    made = _json(capsys, tiny_moe, "--target", "onnx", "--quant", "fp32", "--out", out, "--json", "-")
    assert (made["folder"], made["artifacts"][0]["path"]) == (str(out), "onnx/model.onnx")
    found = _json(capsys, "validate", out, "--reference", tiny_moe, "--json", "-")
    (row,) = found["artifacts"]
    assert (row["verdict"], row["target"], row["quant"], row["budgets"]) == ("pass", "onnx", "fp32", [])
    assert row["metrics"]["max_abs_logit"] <= 1e-3
    assert row["metrics"]["same_top1"] == 1.0
    assert {"kld_mean", "kld_se", "kld_p99", "kld_max", "top5_overlap", "ppl_ratio"} <= set(row["metrics"])
    manifest = json.loads((out / "lfm-convert.json").read_text())
    assert manifest["artifacts"][0]["validation"]["verdict"] == "pass"


def test_budget_has_its_own_exit_code(tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = [str(tiny_moe), "--target", "onnx", "--quant", "fp32", "--out", str(out), "--max-size", "1MB"]
    assert main(arguments) == 4
    assert "budget" in capsys.readouterr().err and not out.exists()
    assert main([*arguments[:-2]]) == 0
    assert main(["validate", str(out), "--reference", str(tiny_moe), "--max-size", "1MB"]) == 4
    assert "is over the budget" in capsys.readouterr().out


@pytest.mark.parametrize(("target", "quant"), [("onnx", "fp32"), ("gguf", "F32")])
def test_swapped_weights_fail_the_gate(target: str, quant: str, tiny_moe: Path, tmp_path: Path) -> None:
    """Negative control: an artifact of a checkpoint with two weights swapped, against the true one."""
    gate, up = (f"model.layers.0.feed_forward.{name}.weight" for name in ("w1", "w3"))

    def swap(tensors: dict[str, Tensor]) -> None:
        tensors[gate], tensors[up] = tensors[up], tensors[gate]

    swapped = shutil.copytree(tiny_moe, tmp_path / "swapped")
    edit_tensors(swapped / "model.safetensors", swap)
    out = tmp_path / "out"
    assert main([str(swapped), "--target", target, "--quant", quant, "--out", str(out), "--no-validate"]) == 0
    validate = [
        "validate",
        str(out),
        "--reference",
        str(tiny_moe),
        "--other-reference",
        "--json",
        str(tmp_path / "r.json"),
    ]
    assert main(validate) == 3
    (row,) = json.loads((tmp_path / "r.json").read_text())["artifacts"]
    assert row["verdict"] == "fail"
    assert row["metrics"]["max_abs_logit"] > 0.1


def test_inspect(tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = _json(capsys, "inspect", tiny_moe, "--json")
    assert (found["kind"], found["model_type"], found["experts"]) == ("checkpoint", "lfm2_moe", [8, 4])
    out = tmp_path / "out"
    assert main([str(tiny_moe), "--target", "gguf", "--quant", "Q4_0", "--out", str(out), "--no-validate"]) == 0
    capsys.readouterr()
    (row,) = _json(capsys, "inspect", out, "--json")["artifacts"]
    assert (row["quant"], row["verdict"]) == ("Q4_0", None)
    assert "Q4_0" in row["encodings"]
    file = _json(capsys, "inspect", next(out.glob("*.gguf")), "--json")
    assert file["metadata"]["general.architecture"] == "lfm2moe"
    assert "Q4_0" in {each["type"] for each in file["types"]}


def test_targets_and_doctor(capsys: pytest.CaptureFixture[str]) -> None:
    rows = {row["target"]: row for row in _json(capsys, "targets", "--json")["targets"]}
    assert rows["onnx"]["quants"] == ["fp32", "fp16", "q8", "q4", "q4_mixed", "q4f16"]
    assert rows["gguf"]["missing"] is None
    assert _json(capsys, "doctor", "--json")["targets"]["gguf"] is None


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    from lfm_convert import __version__

    for option in ("--version", "-V"):
        assert main([option]) == 0
        assert capsys.readouterr().out.strip() == __version__
    assert main([]) == 0
    assert "convert" in capsys.readouterr().out


def test_debug_shows_the_traceback(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", str(tmp_path / "x"), "--target", "onnx"]) == 5
    assert "Traceback" not in capsys.readouterr().err
    assert main(["plan", str(tmp_path / "x"), "--target", "onnx", "--debug"]) == 5
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_leave_nothing(number: signal.Signals, code: int, tmp_path: Path) -> None:
    from support.checkpoints import make_checkpoint, moe_config

    folder = make_checkpoint(tmp_path / "model", moe_config(hidden_size=256, num_experts=64, moe_intermediate_size=512))
    # A search that takes many seconds, so that the signal finds it at work.
    what = ["--target", "mlx", "--quant", "3bit", "--refine", "--jobs", "1", "--no-validate"]
    command = [*CLI, folder, *what, "--out", tmp_path / "out"]
    # A shell that runs the tests in the background has children ignore Ctrl-C.
    heard = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen([str(part) for part in command], stderr=subprocess.PIPE, text=True, preexec_fn=heard)
    deadline = time.monotonic() + 30
    while not (tmp_path / "out" / ".lfm-partial").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=30)
    assert process.returncode == code, stderr
    assert "nothing was published" in stderr
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


# The console script, whose `main` is over but for the process's end, or tells of what it did, when a signal comes.
_LATE = """
import os, signal, sys
from lfm_convert.convert.cli import main
number = int(sys.argv[2])
main.main = lambda arguments: (os.kill(os.getpid(), number), 0)[1] if sys.argv[1] == "within" else 0
if sys.argv[1] == "after":
    leave = sys.exit
    main.sys.exit = lambda code: (os.kill(os.getpid(), number), leave(code))
main.run([])
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_at_the_very_end(number: signal.Signals) -> None:
    """Neither is an internal error: of the first the code tells, the second comes when all is done and told."""
    for when, code in (("within", 128 + number), ("after", 0)):
        command = [sys.executable, "-c", _LATE, when, str(int(number))]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stderr) == (code, "")


def test_a_signal_of_which_a_library_makes_an_error_is_still_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ONNX Runtime, stopped while it is imported, says that it cannot be; what was noted on the way is kept."""

    def open_model(*arguments: object, **options: object) -> None:
        try:
            on_signal(signal.SIGTERM, None)
        except BaseException as error:
            failed = ImportError("initialization failed")
            failed.add_note("nothing was published")
            raise failed from error

    monkeypatch.setattr(pipeline, "open_model", open_model)
    assert main(["plan", "bundled:dense", "-t", "onnx"]) == 143
    assert capsys.readouterr().err == "lfm-convert: terminated; nothing was published\n"
    monkeypatch.undo()
    assert main(["plan", "bundled:dense", "-t", "onnx", "-q", "none"]) == 2
