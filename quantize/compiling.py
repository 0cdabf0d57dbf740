"""Lets whoever waits know that machine code is being made: it takes seconds, and happens once on a machine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

Told = Callable[[str], None]
_listeners: list[Told] = []


@contextmanager
def told_of_compiling(note: Told) -> Iterator[None]:
    """Within it `note` hears a sentence for each file of kernels that is compiled, from whichever thread compiles it."""
    said: set[str] = set()

    def once(sentence: str) -> None:
        if sentence not in said:
            said.add(sentence)
            note(sentence)

    _listeners.append(once)
    try:
        yield
    finally:
        _listeners.remove(once)


def tell(sentence: str) -> None:
    """Tells all who listen."""
    for each in _listeners:
        each(sentence)
