"""A tensor of an artifact, decoded row by row from the files it is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..graph.dtypes import DType, Float32
from ..graph.errors import InputError, UsageError
from ..graph.roles import Address, find_role
from ..graph.tensor import ScaledTensor, Shape, TensorView
from ..quantize.encoding import Encoding, get_encoding, matrix_height
from .target import Artifact


@dataclass(frozen=True)
class StoredPart:
    """Where one part of an encoded tensor lies. Units: bytes."""

    path: Path
    offset: int


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


def as_stored(view: TensorView, rows: Float32, encoding: Encoding | None = None) -> Float32:
    """Rows [n, n_cols] as the encoder of a stored tensor leaves them, or another in its place; themselves where none does.

    What is stored times a factor is rounded so.
    """
    sources = view.sources()
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


class Encoded(TensorView):
    """A tensor whose rows are stored in an encoding."""

    encoding: Encoding


class EncodedTensor(Encoded):
    """Decodes rows of a stored tensor on demand; checks that each read is whole."""

    def __init__(self, name: str, shape: Shape, encoding: Encoding, parts: tuple[StoredPart, ...]) -> None:
        super().__init__(name, DType.F32, shape)
        self.encoding = encoding
        self._parts = parts

    def _rows(self, start: int, stop: int) -> Float32:
        tile, height = self.encoding.tile_rows, matrix_height(self.shape)
        if height % tile == 0:
            height = self.n_rows  # tiles lie end to end; else the last one of each matrix is short
        pieces = [np.empty((0, self.n_cols), np.float32)]
        for first in range(start // height * height, stop, height):
            low, high = max(start, first) - first, min(stop, first + height) - first
            begin, end = low // tile * tile, min(-(-high // tile) * tile, height)
            pieces.append(self._tiles(first + begin, first + end)[low - begin : high - begin])
        return pieces[1] if len(pieces) == 2 else np.concatenate(pieces)

    def _tiles(self, start: int, stop: int) -> Float32:
        arrays, height = [], matrix_height(self.shape)
        for part, stored in zip(self.encoding.parts(self.n_cols), self._parts, strict=True):
            low, high = (part.offset(row, height) for row in (start, stop))
            wanted = high - low
            with stored.path.open("rb") as file:
                file.seek(stored.offset + low)
                data = file.read(wanted)
            if len(data) != wanted:
                raise InputError(
                    f"{stored.path}: tensor '{self.name}' is truncated: expected {wanted} bytes, found {len(data)}"
                )
            arrays.append(np.frombuffer(data, part.dtype).reshape(-1, *part.row_shape))
        return self.encoding.decode(*arrays)
