"""Cuts a model into packages of at most a size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from ...graph.errors import UsageError
from ...graph.units import format_size
from .piece import Piece

# The bytes of a piece's weights.
Size = Callable[[Piece], int]


def cut(make: Callable[[range], Piece], size_of: Size, n_layers: int, max_bytes: int | None) -> Sequence[Piece]:
    """The pieces of a model in turn: each takes the layers that fit `max_bytes` and are left; one without a limit.

    Raises: UsageError for a layer that does not fit, with the table or the head where it must lie beside one.
    """
    if max_bytes is None:
        return [make(range(n_layers))]
    found: list[Piece] = []
    while not found or not found[-1].is_last:
        found.append(_next(make, size_of, found[-1].layers.stop if found else 0, n_layers, max_bytes))
    return [replace(piece, number=number, count=len(found)) for number, piece in enumerate(found, start=1)]


def _next(make: Callable[[range], Piece], size_of: Size, start: int, n_layers: int, max_bytes: int) -> Piece:
    piece = make(range(start, start + 1))
    if (size := size_of(piece)) > max_bytes:
        beside = " with the token table" if piece.is_first else " with the head" if piece.is_last else ""
        raise UsageError(f"--coreml-split {format_size(max_bytes)}: layer {start}{beside} takes {format_size(size)}")
    for stop in range(start + 2, n_layers + 1):
        longer = make(range(start, stop))
        if size_of(longer) > max_bytes:
            break
        piece = longer
    return piece
