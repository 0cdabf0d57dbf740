"""Options that several commands take, listed once.

A group is a function whose parameters are options and whose result is what a command does with them.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, get_args

from .help_text import TITLES

Command = Callable[..., int]


def grouped(**groups: Callable[..., Any]) -> Callable[[Command], Command]:
    """Gives a command the options of a group in place of its parameter of the group's name. Groups may share an option.

    The order of `--help` is that of the command's signature.
    """

    def decorate(command: Command) -> Command:
        shown: list[inspect.Parameter] = []
        names: dict[str, list[str]] = {}
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            group = groups.get(parameter.name)
            options = [parameter]
            if group is not None:
                options = list(inspect.signature(group, eval_str=True).parameters.values())
                for option in options:
                    _shown_under(option, TITLES[parameter.name])
                names[parameter.name] = [option.name for option in options]
            shown += [option for option in options if option.name not in {other.name for other in shown}]

        @functools.wraps(command)
        def run(**given: Any) -> int:
            made = {
                name: groups[name](**{option: given[option] for option in options}) for name, options in names.items()
            }
            grouped_options = {option for options in names.values() for option in options}
            rest = {name: value for name, value in given.items() if name not in grouped_options}
            return command(**rest, **made)

        keyword = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in shown]
        run.__signature__ = inspect.Signature(keyword, return_annotation=int)  # type: ignore[attr-defined]
        return run

    return decorate


def _shown_under(option: inspect.Parameter, title: str) -> None:
    """Lets `--help` show an option in a group: the first that it is found in."""
    about = get_args(option.annotation)[-1]
    about.rich_help_panel = about.rich_help_panel or title
