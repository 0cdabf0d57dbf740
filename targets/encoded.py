"""The tensors of an artifact or of a source, as its files have them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from ..graph.dtypes import DType, Float32
from ..graph.errors import InputError, UsageError
from ..graph.grid import Grid, GridRows
from ..graph.roles import Address, find_role
from ..graph.tensor import OffsetTensor, ScaledTensor, Shape, TensorView
from ..quantize.encoding import Bytes, Encoding, get_encoding
from ..quantize.grids import OnGrid
from ..quantize.stored import Encoded, EncodedTensor, StoredPart
from .target import Artifact


def stored_tensors(artifact: Artifact) -> list[tuple[Address, EncodedTensor]] | None:
    """The tensors of an artifact with a role, as its manifest says where they lie; None if it was written before they did.

    Raises: InputError for a role or an encoding that is not known here.
    """
    if artifact.entry.get("layout") is None:
        return None
    found = []
    for entry in artifact.entry["tensors"]:
        if entry["role"] is None:
            continue
        try:
            address = find_role(entry["role"]), entry["layer"]
            encoding = get_encoding(entry["encoding"])
        except (ValueError, UsageError) as error:
            raise InputError(f"{artifact.path}: tensor '{entry['name']}' cannot be read: {error}") from None
        parts = tuple(StoredPart(artifact.folder / part["path"], part["offset"]) for part in entry["parts"])
        found.append((address, EncodedTensor(entry["name"], tuple(entry["shape"]), encoding, parts)))
    return found


def encoding_of(view: TensorView) -> Encoding | None:
    """What rows of a stored tensor are encoded as; None if they are there in float32, or nobody says."""
    if isinstance(view, Encoded):
        return view.encoding
    return next((found for source in view.sources() if (found := encoding_of(source)) is not None), None)


def stored_under(views: Iterable[TensorView]) -> list[EncodedTensor]:
    """The stored tensors that some are views of, each once, in their order."""
    found: dict[int, EncodedTensor] = {}
    for view in views:
        own = [view] if isinstance(view, EncodedTensor) else stored_under(view.sources())
        found |= {id(each): each for each in own}
    return list(found.values())


def as_stored(view: TensorView, rows: Float32, encoding: Encoding | None = None) -> Float32:
    """Rows [n, n_cols] as the encoder of a stored tensor leaves them, or another in its place; themselves where none does.

    What is stored times a factor, or less a number, is rounded so.
    """
    sources = view.sources()
    if isinstance(view, OffsetTensor):
        return as_stored(view.base, rows - view.offset, encoding) + view.offset
    if isinstance(view, ScaledTensor):
        return as_stored(sources[0], rows / view.factor, encoding) * view.factor
    if sources:
        return as_stored(sources[0], rows, encoding)
    used = encoding or (view.encoding if isinstance(view, Encoded) else None)
    if used is None or used.refusal(rows.shape[1]) is not None:
        return rows
    stock = get_encoding(used.stored_name) if used.is_refined else used
    n = len(rows)
    padded = np.pad(rows, ((0, -n % stock.tile_rows), (0, 0)))
    return stock.decode(*stock.encode(padded))[:n]


class SourceTensor(EncodedTensor):
    """A tensor of a source: its values are finite, and codes go on as they are where another format can hold them.

    `dtype` is the float type that it comes in: that of its scales, if it has codes.
    """

    def __init__(
        self, name: str, shape: Shape, encoding: Encoding, parts: tuple[StoredPart, ...], dtype: DType
    ) -> None:
        super().__init__(name, shape, encoding, parts)
        self.dtype = dtype

    @property
    def stored_as(self) -> str | None:
        return self.encoding.stored_name if self.encoding.block > 1 else None

    @property
    def grid(self) -> Grid | None:
        return self.encoding.grid if isinstance(self.encoding, OnGrid) else None

    def stored_rows(self, start: int, stop: int) -> tuple[Bytes, ...]:
        arrays = self.arrays(start, stop)
        self._refuse_not_finite(self._values(arrays), start)
        return arrays

    def grid_rows(self, start: int, stop: int) -> GridRows:
        if not isinstance(self.encoding, OnGrid):
            return super().grid_rows(start, stop)
        found = self.encoding.to_grid(*self.arrays(start, stop))
        for values in (found.scales, found.shifts):
            self._refuse_not_finite(values, start)
        return found

    def place(self, row: int) -> tuple[str, int]:
        first = self._parts[0]
        return str(first.path), first.offset + row * self.encoding.parts(self.n_cols)[0].row_nbytes

    def _rows(self, start: int, stop: int) -> Float32:
        values = self._values(self.arrays(start, stop))
        self._refuse_not_finite(values, start)
        return values

    def _values(self, arrays: tuple[Bytes, ...]) -> Float32:
        with np.errstate(invalid="ignore", over="ignore"):  # what is no number is refused in a sentence
            return self.encoding.decode(*arrays)

    def _refuse_not_finite(self, values: Float32, start: int) -> None:
        finite = np.isfinite(values)
        if not finite.all():
            row = start + int(np.argwhere(~finite)[0][0])
            raise InputError(
                f"{self._parts[0].path}: tensor '{self.name}' is not finite in row {row}: expected finite weights"
            )
