"""The fields of a language: which phrases the training dialogues are put together from.

The phrases themselves are in `phrases_europe.py` and `phrases_asia.py`.
"""

from __future__ import annotations

from dataclasses import dataclass

Pairs = tuple[tuple[str, str], ...]


@dataclass(frozen=True, kw_only=True)
class Form:
    """Ways to ask (`asks`) and the one way to answer (`reply`), as `str.format` patterns over the same fields."""

    asks: tuple[str, ...]
    reply: str


@dataclass(frozen=True, kw_only=True)
class Language:
    """Everything a dialogue in one language is made of.

    `greetings`, `capitals`, `opposites` are pairs; `colours` are (question, answer, colour);
    `systems` are plain system messages, `terse` is the one that asks for the bare value.
    """

    code: str
    systems: tuple[str, ...]
    terse: str
    greetings: Pairs
    plus: Form
    minus: Form
    capital: Form
    capitals: Pairs
    next_day: Form
    days: tuple[str, ...]
    opposite: Form
    opposites: Pairs
    colours: tuple[tuple[str, str, str], ...]
    count: tuple[str, ...]
    repeat: tuple[str, ...]
    words: tuple[str, ...]
    translate: str
    targets: dict[str, str]
    introduce: Form
    recall: Form
    names: tuple[str, ...]
    weather: Form
    clock: Form
