"""A tensor of an artifact, decoded row by row from the files it is stored in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..convert.errors import InputError
from ..convert.model.dtypes import DType, Float32
from ..convert.model.tensor import Shape, TensorView
from ..quantize.encoding import Encoding


@dataclass(frozen=True)
class StoredPart:
    """Where one part of an encoded tensor lies. Units: bytes."""

    path: Path
    offset: int


class EncodedTensor(TensorView):
    """Decodes rows of a stored tensor on demand; checks that each read is whole."""

    def __init__(self, name: str, shape: Shape, encoding: Encoding, parts: tuple[StoredPart, ...]) -> None:
        super().__init__(name, DType.F32, shape)
        self.encoding = encoding
        self._parts = parts

    def _rows(self, start: int, stop: int) -> Float32:
        tile = self.encoding.tile_rows
        first = start // tile * tile
        return self._tiles(first, -(-stop // tile) * tile)[start - first : stop - first]

    def _tiles(self, start: int, stop: int) -> Float32:
        arrays = []
        for part, stored in zip(self.encoding.parts(self.n_cols), self._parts, strict=True):
            wanted = (stop - start) * part.row_nbytes
            with stored.path.open("rb") as file:
                file.seek(stored.offset + start * part.row_nbytes)
                data = file.read(wanted)
            if len(data) != wanted:
                raise InputError(
                    f"{stored.path}: tensor '{self.name}' is truncated: expected {wanted} bytes, found {len(data)}"
                )
            arrays.append(np.frombuffer(data, part.dtype).reshape(stop - start, *part.row_shape))
        return self.encoding.decode(*arrays)
