"""Options of tuning, as `convert` and `plan` take them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from ...quantize.allotment.wanted import TUNED

TUNE = "--tune"


@dataclass(frozen=True)
class Tuning:
    """What is to be tuned, once each, and the option of the targets that says by what."""

    what: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def tuning_options(
    *,
    tune: Annotated[
        list[str] | None,
        typer.Option(
            TUNE,
            metavar="WHAT",
            help=f"Tune at the size of the quant: {', '.join(TUNED)}; all of it without a value.",
            show_default=False,
        ),
    ] = None,
    statistics: Annotated[
        Path | None,
        typer.Option("--statistics", metavar="FOLDER", help="What to tune by, of calibrate.", show_default=False),
    ] = None,
) -> Tuning:
    """What the options ask for. Values of `--tune` are checked where quants are named."""
    what = tuple(dict.fromkeys(name.strip() for value in tune or () for name in value.split(",")))
    return Tuning(what, {} if statistics is None else {"statistics": str(statistics)})


def with_value(words: list[str]) -> list[str]:
    """A command line in which `--tune` by itself has the value that it stands for."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == TUNE and set(word.split(",")) <= {"", *TUNED}:
            found[-1] = f"{TUNE}={word}"
        else:
            found.append(word)
    return [f"{TUNE}={','.join(TUNED)}" if word == TUNE else word for word in found]
