"""Options of tuning, as `convert` and `plan` take them."""

from __future__ import annotations

from typing import Annotated

import typer

from ...quantize.allotment.wanted import TUNED

TUNE = "--tune"

Tune = Annotated[
    list[str] | None,
    typer.Option(
        TUNE,
        metavar="WHAT",
        help=f"Tune by --statistics at the size of the quant: {', '.join(TUNED)}; all of it without a value.",
        show_default=False,
    ),
]


def tuned(given: list[str] | None) -> tuple[str, ...]:
    """What is to be tuned, once each."""
    return tuple(dict.fromkeys(name.strip() for value in given or () for name in value.split(",")))


def with_value(words: list[str]) -> list[str]:
    """A command line in which `--tune` by itself has the value that it stands for."""
    found: list[str] = []
    for word in words:
        if found and found[-1] == TUNE and set(word.split(",")) <= set(TUNED):
            found[-1] = f"{TUNE}={word}"
        else:
            found.append(word)
    return [f"{TUNE}={','.join(TUNED)}" if word == TUNE else word for word in found]
