"""Finds the encoders' kernels, and lets whoever waits know that machine code is being made: it takes seconds, and happens
once on a machine.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

from ..graph.errors import needs_extra

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


@cache
def find_kernel(module: str, name: str, *, extra: str, encoding: str) -> Callable[..., None]:
    """The kernel of that name in `encodings/_kernels_….py`.

    Raises: BackendError naming the extra, if the compiler is not installed.
    """
    with needs_extra(extra, f"encoding {encoding}"):
        found = importlib.import_module(f"{__package__}.encodings.{module}")
    kernel: Callable[..., None] = getattr(found, name)
    return kernel
