"""How much is told on stderr, and that it is ours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main

# A run of the console script in which a library prints by every way there is, before it ends by an error or not.
_NOISY = """
import logging, os, sys, tempfile, warnings
from lfm_convert.convert.cli import console, main
from lfm_convert.graph.errors import UsageError

def no_room():
    raise OSError("no room")

if "no-room" in sys.argv:
    tempfile.TemporaryFile = no_room

def noisy(arguments):
    console.set_volume(quiet=False, verbose="--verbose" in arguments)
    with console.watched() as progress:
        os.write(2, b"from C\\n")
        warnings.warn("from warnings")
        logging.getLogger("library").warning("from logging")
        progress.note("a note of ours")
        if "fails" in arguments:
            raise KeyError("a library's")
        if "refused" in arguments:
            raise UsageError("ours")
    os.write(2, b"from C, later\\n")
    return 0

main.main = noisy
main.run(sys.argv[1:])
"""


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-c", _NOISY, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if {"fails", "refused"} & set(arguments) else 0)
    return done.stderr


def test_what_libraries_say_is_held_back() -> None:
    assert run() == "a note of ours\nfrom C, later\n"


def test_verbose_lets_libraries_speak() -> None:
    said = run("--verbose")
    assert all(f"from {each}" in said for each in ("C", "warnings", "logging"))


def test_it_is_told_after_an_error_that_is_not_ours() -> None:
    assert "from C\n" in run("fails") and "from C\n" not in run("refused")


def test_without_room_to_hold_it_back_the_work_goes_on() -> None:
    assert run("no-room") == "from C\na note of ours\nfrom C, later\n"


def test_quiet_and_verbose(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [
        str(tiny_dense),
        "-t",
        "onnx",
        "-q",
        "q4",
        "--no-validate",
        "--overwrite",
        "--out",
        str(tmp_path / "out"),
    ]
    told = {}
    for flag in ("", "--quiet", "--verbose"):
        assert main([*command, flag][: -1 if not flag else None]) == 0
        told[flag] = capsys.readouterr()
    assert told["--quiet"].err == "" and told["--quiet"].out == told[""].out != ""
    assert "onnx q4: " in told["--verbose"].err and "onnx q4: " not in told[""].err
    assert main([*command, "--quiet", "--verbose"]) == 2
