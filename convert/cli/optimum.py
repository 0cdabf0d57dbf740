"""`optimum-cli export lfm-convert --model MODEL --target T --quant Q OUTPUT`.

Source: optimum 2.3 `commands/base.py`, `commands/optimum_cli.py`.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

import typer
from optimum.commands.base import BaseOptimumCLICommand, CommandInfo

from ..bundled import CHOICES

# Spelled as in optimum's own export commands: `--model`, and the folder as the argument.
_OWN = ("model", "out")


class LfmConvertCommand(BaseOptimumCLICommand):  # type: ignore[misc]
    """`lfm-convert convert` under optimum's command line, with the same options, messages and exit codes."""

    COMMAND = CommandInfo(
        name="lfm-convert", help="Export Liquid AI's language models to ONNX, GGUF, MLX or ExecuTorch."
    )

    @staticmethod
    def parse_args(parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "-m", "--model", required=True, help=f"Checkpoint or MLX folder, GGUF file, hub id, or {CHOICES}."
        )
        parser.add_argument("output", help="Folder to write.")
        parser.add_argument("--debug", action="store_true", help="Show a traceback of a failure.")
        for option in _options():
            more = {"action": "store_true"} if option.is_flag else {"metavar": option.metavar}
            if option.multiple:
                more["action"] = "append"
            # argparse expands %; here nothing is to be.
            help_text = (option.help or "").replace("%", "%%")
            parser.add_argument(*option.opts, dest=option.name, required=option.required, help=help_text, **more)

    def run(self) -> None:
        from .main import run

        run(list(_command_line(self.args)))


def _options() -> list[Any]:
    """The options of `lfm-convert convert`, from its own declaration."""
    from .main import app

    command: Any = typer.main.get_command(app)
    return [p for p in command.commands["convert"].params if p.name not in _OWN]


def _command_line(args: argparse.Namespace) -> Iterator[str]:
    """The arguments as `lfm-convert` takes them."""
    yield from ("convert", args.model, "--out", args.output)
    if args.debug:
        yield "--debug"
    for option in _options():
        value = getattr(args, option.name)
        for each in value if isinstance(value, list) else [value]:
            if each is True:
                yield option.opts[0]
            elif each not in (None, False):
                yield f"{option.opts[0]}={each}"
