"""bitsandbytes: eight bits with a scale a row, or four bits that index a table, in blocks of the flat weight.

| tensor | type | shape |
|---|---|---|
| 8 bit `weight`, `SCB` | I8, F32 | [n, k], [n]; value = code * SCB * (1 / 127) |
| 4 bit `weight` | any; bytes of two codes, the first in the high bits | n * k / 2 bytes |
| `weight.absmax` | F32, or U8 if nested | [blocks] |
| `weight.quant_map` | F32 | [16]: what codes stand for |
| `weight.quant_state.bitsandbytes__nf4` or `__fp4` | U8 | JSON: shape, blocksize, quant_type, nested_blocksize, nested_offset |
| nested: `weight.nested_absmax`, `weight.nested_quant_map` | F32 | [blocks / nested_blocksize], [256] |

4 bit value = quant_map[code] * absmax; a nested absmax is nested_quant_map[code] * nested_absmax + nested_offset.
Source: bitsandbytes 0.50 `functional.py` (QuantState, int8_vectorwise_dequant), `backends/default/ops.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ...codes import Bytes
from ...dtypes import DType, Float32
from ...tensor import Shape
from ..safetensors import StoredTensor
from .taking import Taking, is_count
from .views import PackedTensor, numbers

NAME = "bitsandbytes"
_STATE = ".weight.quant_state.bitsandbytes__"
_PARTS = (".weight.absmax", ".weight.quant_map", ".weight.nested_absmax", ".weight.nested_quant_map")
_TYPES = ("nf4", "fp4")
_LARGEST_STATE = 1 << 12  # bytes of JSON
# The only order of weights in memory that is saved today; older ones are of the GPUs that they were saved on.
_ROW_MAJOR = 0


def unpack(settings: Mapping[str, Any], taking: Taking) -> None:
    """Decodes every module of either kind."""
    for module in taking.modules((*_PARTS, *(_STATE + kind for kind in _TYPES))):
        _four_bits(module, taking)
    eight = taking.modules((".SCB", ".weight_format"))
    eight += [m for m in taking.modules((".weight",)) if taking.tensors[f"{m}.weight"].dtype is DType.I8]
    for module in dict.fromkeys(eight):
        _eight_bits(module, taking)


def _eight_bits(module: str, taking: Taking) -> None:
    name = f"{module}.weight"
    main = taking.main(name, dtypes=[DType.I8])
    scales = main and taking.take(f"{module}.SCB", dtypes=[DType.F32], shapes=[main.shape[:1]])
    order = None
    if taking.has(f"{module}.weight_format"):
        order = taking.take(f"{module}.weight_format", dtypes=[DType.U8], shapes=[(), (1,)])
        if order is not None and (found := int(order.elements(0, 1)[0])) != _ROW_MAJOR:
            taking.fault(f"tensor '{module}.weight_format' is {found}: expected {_ROW_MAJOR}, rows one after the other")
    if main is None or scales is None:
        taking.give_up(name, [f"{module}.SCB"])
    else:
        taking.decoded(name, _EightBits(name, taking.dtype, main.shape, main, scales), "int8")


class _EightBits(PackedTensor):
    """Integers times the largest weight of their row, over 127."""

    def __init__(self, name: str, dtype: DType, shape: Shape, main: StoredTensor, scales: StoredTensor) -> None:
        super().__init__(name, dtype, shape, main)
        self._scales = scales

    def decode(self, start: int, stop: int, out: Float32) -> None:
        codes = self.main.elements(start * self.n_cols, stop * self.n_cols).reshape(out.shape)
        np.multiply(codes, numbers(self._scales, start, stop)[:, None], out=out)
        out *= np.float32(1 / 127)


@dataclass(frozen=True)
class _State:
    """What the JSON beside a weight of four bits says. `nested` is the block of its scales, 0 if they are floats."""

    kind: str
    shape: Shape
    block: int
    nested: int
    offset: np.float32


def _four_bits(module: str, taking: Taking) -> None:
    name = f"{module}.weight"
    parts = [f"{module}{end}" for end in (*_PARTS, *(_STATE + kind for kind in _TYPES))]
    state = _read_state(module, taking)
    view = None if state is None else _four_bit_view(name, state, taking)
    if state is None or view is None:
        taking.give_up(name, [name, *parts])
    else:
        block = f" in blocks of {state.block}" + (", nested" if state.nested else "")
        taking.decoded(name, view, state.kind + block)


def _read_state(module: str, taking: Taking) -> _State | None:
    names = [f"{module}{_STATE}{kind}" for kind in _TYPES]
    name = next(filter(taking.has, names), names[0])
    tensor = taking.main(name, dtypes=[DType.U8], n_axes=(1,))
    if tensor is None:
        return None
    try:
        if tensor.nbytes > _LARGEST_STATE:
            raise ValueError(f"{tensor.nbytes} bytes")
        raw = json.loads(tensor.elements(0, tensor.nbytes).tobytes())
        state = _State(
            kind=name.rpartition("__")[2],
            shape=tuple(_size(n) for n in raw["shape"]),
            block=_size(raw["blocksize"]),
            nested=_size(raw["nested_blocksize"]) if "nested_blocksize" in raw else 0,
            offset=np.float32(raw.get("nested_offset", 0)),
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        taking.fault(f"tensor '{name}' does not hold the shape and the blocks of its weight: {error!r:.80}")
        return None
    if len(state.shape) < 2 or state.shape[-1] < 1:
        taking.fault(f"tensor '{name}' gives its weight the shape {list(state.shape)}: expected two axes")
        return None
    return state


def _size(number: Any) -> int:
    if not is_count(number):
        raise ValueError(f"{number!r:.20} is no size")
    return number


def _four_bit_view(name: str, state: _State, taking: Taking) -> _FourBits | None:
    count = math.prod(state.shape)
    stored = taking.tensors.get(name)
    main = taking.main(name, dtypes=[stored.dtype] if stored else [], n_axes=(1, 2))
    if main is not None and main.nbytes != -(-count // 2):
        taking.fault(f"tensor '{name}' has {main.nbytes} bytes: expected {-(-count // 2)} of {count} codes")
        main = None
    n_blocks = -(-count // state.block)
    absmax = taking.take(f"{name}.absmax", dtypes=[DType.U8 if state.nested else DType.F32], shapes=[(n_blocks,)])
    table = taking.take(f"{name}.quant_map", dtypes=[DType.F32], shapes=[(16,)])
    nested: tuple[StoredTensor | None, ...] = ()
    if state.nested:
        nested = (
            taking.take(f"{name}.nested_absmax", dtypes=[DType.F32], shapes=[(-(-n_blocks // state.nested),)]),
            taking.take(f"{name}.nested_quant_map", dtypes=[DType.F32], shapes=[(256,)]),
        )
    if main is None or absmax is None or table is None or None in nested:
        return None
    scales = _BlockScales(state, absmax, *nested)
    return _FourBits(name, taking.dtype, state.shape, main, table=table, scales=scales)


@dataclass(frozen=True)
class _BlockScales:
    """The largest weight of each block of a flat weight."""

    state: _State
    absmax: StoredTensor
    nested_absmax: StoredTensor | None = None
    nested_map: StoredTensor | None = None

    def of_blocks(self, start: int, stop: int) -> Float32:
        if self.nested_absmax is None or self.nested_map is None:
            return numbers(self.absmax, start, stop)
        outer = np.arange(start, stop) // self.state.nested
        first = int(outer[0]) if len(outer) else 0
        scales = numbers(self.nested_absmax, first, int(outer[-1]) + 1 if len(outer) else 0)
        values = numbers(self.nested_map, 0, 256)[self.absmax.elements(start, stop)]
        return values * scales[outer - first] + self.state.offset


class _FourBits(PackedTensor):
    """Entries of a table times the scale of their block; a block goes on from one row to the next."""

    def __init__(
        self, name: str, dtype: DType, shape: Shape, main: StoredTensor, *, table: StoredTensor, scales: _BlockScales
    ) -> None:
        super().__init__(name, dtype, shape, main)
        self._table, self._scales = table, scales

    def decode(self, start: int, stop: int, out: Float32) -> None:
        first, last, block = start * self.n_cols, stop * self.n_cols, self._scales.state.block
        codes = _nibbles(self._bytes(first // 2, -(-last // 2)))[first % 2 :][: last - first]
        values = numbers(self._table, 0, 16)[codes]
        blocks = self._scales.of_blocks(first // block, -(-last // block))
        wide = np.repeat(blocks, block)[first % block :][: last - first]
        np.multiply(values, wide, out=out.reshape(-1))

    def _bytes(self, start: int, stop: int) -> Bytes:
        """Bytes of the weight, whatever type they are stored as."""
        size = self.main.dtype.itemsize
        found = self.main.elements(start // size, -(-stop // size)).view(np.uint8)
        return found[start % size :][: stop - start]


def _nibbles(packed: Bytes) -> Bytes:
    """Two codes a byte, the one in the high bits first."""
    codes = np.empty((len(packed), 2), np.uint8)
    codes[:, 0], codes[:, 1] = packed >> 4, packed & 15
    return codes.reshape(-1)
