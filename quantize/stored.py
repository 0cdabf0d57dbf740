"""A tensor that is stored in an encoding, decoded row by row from the files it lies in."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..graph.dtypes import DType, Float32
from ..graph.errors import InputError
from ..graph.source.open_file import OpenFile
from ..graph.tensor import Shape, TensorView
from .encoding import Bytes, Encoding, matrix_height


@dataclass(frozen=True)
class StoredPart:
    """Where one part of an encoded tensor lies, in a `file` that is open if it is a source's. Units: bytes."""

    path: Path
    offset: int
    file: OpenFile | None = field(default=None, repr=False, compare=False)

    def read(self, start: int, n_bytes: int) -> bytes | bytearray:
        """So many bytes from a place in the part, or fewer if the file ends before."""
        if self.file is not None:
            data = bytearray(n_bytes)
            self.file.read_into(memoryview(data), self.offset + start)
            return data
        with self.path.open("rb") as file:
            file.seek(self.offset + start)
            return file.read(n_bytes)


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
        return self.encoding.decode(*self.arrays(start, stop))

    def arrays(self, start: int, stop: int) -> tuple[Bytes, ...]:
        """The parts of rows, which start and end as the encoding's tiles do.

        Raises: InputError for a file that ends before.
        """
        arrays, height = list[Bytes](), matrix_height(self.shape)
        for part, stored in zip(self.encoding.parts(self.n_cols), self._parts, strict=True):
            low, high = (part.offset(row, height) for row in (start, stop))
            wanted = high - low
            data = stored.read(low, wanted)
            if len(data) != wanted:
                raise InputError(
                    f"{stored.path}: tensor '{self.name}' is truncated: expected {wanted} bytes, found {len(data)}"
                )
            arrays.append(np.frombuffer(data, part.dtype).reshape(-1, *part.row_shape))
        return tuple(arrays)
