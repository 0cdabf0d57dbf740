"""What `--help` shows."""

from __future__ import annotations

import re
import shlex
from typing import Any

import pytest
import typer
from lfm_convert.convert.cli.help_text import EXAMPLES
from lfm_convert.convert.cli.main import app, main
from lfm_convert.targets.target import target_names

COMMANDS: dict[str, Any] = typer.main.get_command(app).commands  # type: ignore[attr-defined]
# Of a terminal: lines, and columns.
SCREEN = 52, 80


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a target's options too; what is left out is told by name, and `--help-all` describes it."""
    lines = [[command]]
    if command in ("convert", "plan"):
        lines += [[command, "--target", name] for name in target_names()]
    for line in lines:
        shown = _shown(capsys, *line, "--help")
        assert shown.count("\n") <= SCREEN[0] and max(map(len, shown.splitlines())) <= SCREEN[1], line
    assert _options(_shown(capsys, command, "--help")) <= {
        *_options(_shown(capsys, command, "--help-all")),
        "--help-all",
    }


def _shown(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert main(list(words)) == 0
    return capsys.readouterr().out


def _options(text: str) -> set[str]:
    return set(re.findall(r"--[a-z-]+[a-z]", text))


@pytest.mark.parametrize("example", [example for examples in EXAMPLES.values() for example in examples])
def test_examples_of_the_help_can_be_typed(example: str) -> None:
    """Each is a command with options that it has; what it names is not looked for."""
    words = shlex.split(example)[1:]
    name = words.pop(0) if words[0] in EXAMPLES else "convert"
    COMMANDS[name].make_context(name, words)
