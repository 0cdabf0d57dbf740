"""Options of the targets, as `convert` and `plan` take them: what the targets' own classes declare."""

from __future__ import annotations

import inspect
from dataclasses import Field
from typing import Annotated, Any

import typer

from ...targets.options import Option, all_options, flag, kind_of
from ...targets.target import get_target, target_names

# How each kind of value is read from a command line: not given, unless it is a flag.
_ASKED: dict[type, Any] = {bool: bool, int: int | None, str: str | None, tuple: list[str] | None}
_METAVARS = {int: "N", str: "NAME"}


def target_options(**given: Any) -> dict[str, Any]:
    """The options that were set, as fields of the target."""
    # By identity: a number of zero equals False, and was asked for.
    return {name: value for name, value in given.items() if not (value is None or value is False)}


def _parameter(name: str, field: Field[Any], about: Option, targets: list[str]) -> inspect.Parameter:
    """An option of the command line: not given, or given with a value that the target will check."""
    text = f"{', '.join(targets)}: {about.help}."
    if about.choices:
        text = f"{text[:-1]}: {' or '.join(about.choices)}."
    shown: dict[str, Any] = {
        "help": text,
        "metavar": about.metavar or _METAVARS.get(kind_of(field)),
        "show_default": False,
    }
    kind: Any = _ASKED[kind_of(field)]
    if kind_of(field) is tuple:
        shown["help"] = f"{text[:-1]}; repeatable."
    if about.is_size:  # with its unit
        kind = str | None
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if kind is bool else None,
        annotation=Annotated[kind, typer.Option(flag(name), **shown)],
    )


def _signature() -> inspect.Signature:
    found = all_options(get_target(name) for name in target_names())
    asked = {name: each for name, each in found.items() if each[1].is_asked}
    return inspect.Signature([_parameter(name, *each) for name, each in asked.items()])


target_options.__signature__ = _signature()  # type: ignore[attr-defined]
