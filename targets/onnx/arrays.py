"""The arrays of an ONNX graph of any writer, read where they lie and no sooner, and what packed ones stand for.

| operator | weights | scales | zero points |
|---|---|---|---|
| MatMulNBits | uint8 [N, K/block, block·bits/8], or flat | one a block of a row | uint8, packed as the codes are, or floats; 2^(bits-1) without |
| GatherBlockQuantized | uint8 [N, K·bits/8] | the same | uint8, packed; 2^(bits-1) without |
| QMoE | uint8 [E, N, K·bits/8] | one a block, or one a row | uint8, packed; 2^(bits-1) without |

value = (code - zero point) · scale; of codes smaller than a byte the first lies in its lowest bits.
Source: ONNX Runtime contrib operators, com.microsoft.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ...graph.errors import InputError
from ...graph.tensor import Shape
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.rounded import Rounded
from ...quantize.stored import Encoded
from ..recognised import own_file

# ONNX's element types that weights are of, as numpy reads them; bfloat16 is widened by hand.
_FLOAT, _UINT8, _INT8, _FLOAT16, _BFLOAT16 = 1, 2, 3, 10, 16
_DTYPES = {_FLOAT: "<f4", _UINT8: "|u1", _INT8: "|i1", _FLOAT16: "<f2", _BFLOAT16: "<u2"}
NAMES = {_FLOAT: "F32", _UINT8: "U8", _INT8: "I8", _FLOAT16: "F16", _BFLOAT16: "BF16"}
FLOATS = frozenset({_FLOAT, _FLOAT16, _BFLOAT16})


@dataclass(frozen=True)
class Stored:
    """One initializer. `kind` is ONNX's element type; `data` are its bytes, as they are in the file or in the graph."""

    name: str
    kind: int
    shape: Shape
    data: NDArray[Any]

    def floats(self, start: int, stop: int) -> Float32:
        """Entries [start, stop) of the first axis as float32, in the initializer's own shape."""
        return widened(self.data[start:stop], self.kind)


def widened(values: NDArray[Any], kind: int) -> Float32:
    """Floats of any type as a new float32 array."""
    if kind == _BFLOAT16:
        return (values.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return values.astype(np.float32)


def stored(path: Path, initializer: Any) -> Stored | None:
    """An initializer of the graph of a file; None for an element type that no weight is of.

    Raises: InputError if its bytes are not all there.
    """
    kind, shape = int(initializer.data_type), tuple(int(d) for d in initializer.dims)
    dtype = _DTYPES.get(kind)
    if dtype is None or not shape or 0 in shape:
        return None
    if initializer.external_data:
        return Stored(initializer.name, kind, shape, _mapped(path, initializer, np.dtype(dtype), shape))
    if initializer.raw_data:
        values = np.frombuffer(initializer.raw_data, dtype)
    elif kind == _FLOAT:
        values = np.array(initializer.float_data, dtype)
    else:  # small integers, and halves as their bits, each in a number of 32 bits
        values = np.array(initializer.int32_data, np.int64).astype(np.uint16 if dtype in ("<f2", "<u2") else dtype)
        values = values.view(dtype) if dtype == "<f2" else values
    if values.size != math.prod(shape):
        raise InputError(f"{path}: initializer '{initializer.name}' has {values.size} values for shape {list(shape)}")
    return Stored(initializer.name, kind, shape, values.reshape(shape))


def _mapped(path: Path, initializer: Any, dtype: np.dtype[Any], shape: Shape) -> NDArray[Any]:
    """External data, by a map that is not read before it is asked."""
    fields = {entry.key: entry.value for entry in initializer.external_data}
    file = own_file(path, fields.get("location", ""))
    try:
        offset = int(fields.get("offset", 0))
    except ValueError:
        raise InputError(f"{path}: initializer '{initializer.name}' lies at {fields['offset']!r:.40}") from None
    end, size = offset + math.prod(shape) * dtype.itemsize, file.stat().st_size
    if not 0 <= offset <= end <= size:
        raise InputError(f"{file}: is truncated: '{initializer.name}' ends at byte {end}, the file at {size}")
    return np.memmap(file, dtype, "r", offset, shape)


def _float_encoding(kind: int) -> Encoding:
    """Of a float initializer: the type it is stored in."""
    return get_encoding(NAMES[kind] if kind in FLOATS else DType.F32.value)


class FloatTensor(Encoded):
    """A float initializer, seen as rows of its last axis."""

    def __init__(self, name: str, array: Stored, shape: Shape) -> None:
        super().__init__(name, DType.F32, shape)
        self._kind = array.kind
        self.encoding = _float_encoding(array.kind)
        self._matrix = array.data.reshape(-1, shape[-1])

    def _rows(self, start: int, stop: int) -> Float32:
        return widened(self._matrix[start:stop], self._kind)


class TransposedTensor(Encoded):
    """A float initializer [in, out] that MatMul multiplies with from the right: its columns are our rows."""

    def __init__(self, name: str, array: Stored) -> None:
        n_in, n_out = array.shape
        super().__init__(name, DType.F32, (n_out, n_in))
        self._array = array
        self.encoding = _float_encoding(array.kind)

    def _rows(self, start: int, stop: int) -> Float32:
        return np.ascontiguousarray(widened(self._array.data[:, start:stop], self._array.kind).T)


@dataclass(frozen=True)
class Packing:
    """How codes are packed. `block` elements of a row share a scale; 0 for the whole row."""

    bits: int
    block: int

    def codes(self, packed: NDArray[Any]) -> NDArray[np.uint8]:
        """Codes [..., n · 8/bits] of bytes [..., n]."""
        if self.bits == 8:
            return packed
        mask = np.uint8(2**self.bits - 1)
        shifts = np.arange(0, 8, self.bits, dtype=np.uint8)
        found = (packed[..., None] >> shifts) & mask
        return found.reshape(*packed.shape[:-1], -1)


class PackedTensor(Encoded):
    """Codes with a scale, and perhaps a zero point, a block of each row."""

    def __init__(
        self, name: str, shape: Shape, packing: Packing, codes: Stored, scales: Stored, zeros: Stored | None
    ) -> None:
        super().__init__(name, DType.F32, shape)
        self._packing, self._scale_kind = packing, scales.kind
        self._block = packing.block or self.n_cols
        n_blocks = -(-self.n_cols // self._block)
        self._codes = _matrix(codes, self.n_rows, n_blocks * self._block * packing.bits // 8, self.n_cols, packing)
        self._scales = _matrix(scales, self.n_rows, n_blocks)
        self._zeros = None if zeros is None else _zeros(zeros, self.n_rows, n_blocks, packing)
        self._zero_kind = zeros.kind if zeros else _UINT8
        self.encoding = Rounded(packing.bits, self._block, has_zeros=zeros is not None)

    def _rows(self, start: int, stop: int) -> Float32:
        scales = widened(self._scales[start:stop], self._scale_kind)
        codes = self._packing.codes(np.asarray(self._codes[start:stop])).astype(np.float32)
        n_blocks = scales.shape[1]
        if short := n_blocks * self._block - codes.shape[1]:  # the last block of a row that is not whole
            codes = np.pad(codes, ((0, 0), (0, short)))
        blocks = codes.reshape(stop - start, n_blocks, self._block)
        values: Float32 = (blocks - self._zero(start, stop, n_blocks)) * scales[..., None]
        return np.ascontiguousarray(values.reshape(stop - start, -1)[:, : self.n_cols])

    def _zero(self, start: int, stop: int, n_blocks: int) -> Float32 | np.float32:
        if self._zeros is None:
            return np.float32(2 ** (self._packing.bits - 1))
        rows = np.asarray(self._zeros[start:stop])
        if self._zero_kind in FLOATS:
            return widened(rows, self._zero_kind)[..., None]
        return self._packing.codes(rows)[:, :n_blocks].astype(np.float32)[..., None]


def _matrix(
    array: Stored, n_rows: int, n_cols: int, n_whole: int | None = None, packing: Packing | None = None
) -> NDArray[Any]:
    """An array as [n_rows, n_cols]; codes of rows that are no multiple of a block may end with the row.

    Raises: InputError if it is of another size.
    """
    if array.data.size == n_rows * n_cols:
        return array.data.reshape(n_rows, n_cols)
    if packing is not None and n_whole is not None and array.data.size == n_rows * (n_whole * packing.bits // 8):
        return array.data.reshape(n_rows, -1)
    raise InputError(f"initializer '{array.name}' has shape {list(array.shape)}: expected {n_rows} rows of {n_cols}")


def _zeros(array: Stored, n_rows: int, n_blocks: int, packing: Packing) -> NDArray[Any]:
    width = n_blocks if array.kind in FLOATS else -(-n_blocks * packing.bits // 8)
    return _matrix(array, n_rows, width)
