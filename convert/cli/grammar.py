"""How a command line is read: nothing of it is dropped, and a misspelt command is named.

An option that takes one value is refused when it is given twice, where click would keep the last; an empty value,
as an unset variable of a script leaves it, is refused for every option and argument.
"""

from __future__ import annotations

import difflib
from collections import Counter
from pathlib import Path
from typing import Any

from typer.core import TyperCommand, TyperGroup

from ...graph.errors import UsageError
from .help_text import HELP_ALL, write_options
from .tuning_options import with_value

_DEFAULT_COMMAND = "convert"
_WORDS = "lfm_convert.words"


class DefaultCommand(TyperGroup):
    """`lfm-convert MODEL --target …` means `lfm-convert convert MODEL --target …`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        own = {*ctx.help_option_names, *(option for parameter in self.params for option in parameter.opts)}
        if args and args[0] not in self.commands and args[0] not in own:
            _refuse_misspelt(args[0], list(self.commands))
            args = [_DEFAULT_COMMAND, *args]
        return super().parse_args(ctx, args)


class Command(TyperCommand):
    """A command each of whose words counts."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        args = with_value(args)
        _refuse_repeated(self.make_parser(ctx).parse_args(args=[word for word in args if word != HELP_ALL])[2])
        _refuse_empty(args)
        ctx.meta[_WORDS] = args
        return super().parse_args(ctx, ["--help" if word == HELP_ALL else word for word in args])

    def format_options(self, ctx: Any, formatter: Any) -> None:
        write_options(self, ctx, formatter, ctx.meta.get(_WORDS, []))


def _refuse_misspelt(word: str, commands: list[str]) -> None:
    """Raises UsageError for a word that is nearly a command and no model: no option, folder, hub id or bundled name."""
    if word.startswith("-") or "/" in word or ":" in word or Path(word).exists():
        return
    near = difflib.get_close_matches(word.lower(), commands, n=1)
    if near:
        raise UsageError(f"no command '{word}': did you mean '{near[0]}'? A model folder of that name is not here")


def _refuse_repeated(order: list[Any]) -> None:
    """`order` lists the parameters of a command line as often as they occur."""
    for parameter, count in Counter(order).items():
        is_option = parameter.param_type_name == "option"
        if count > 1 and is_option and not (parameter.multiple or parameter.is_flag):
            raise UsageError(f"{parameter.opts[0]} is given {count} times: it takes one value")


def _refuse_empty(args: list[str]) -> None:
    for before, word in zip(["", *args], args, strict=False):
        option, separator, value = word.partition("=")
        if not word:
            whose = f"the value of {before}" if before.startswith("-") else "an argument"
            raise UsageError(f"{whose} is empty")
        if option.startswith("--") and separator and not value:
            raise UsageError(f"the value of {option} is empty")
