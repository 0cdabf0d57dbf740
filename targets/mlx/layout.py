"""Which arrays a tensor becomes, and where they lie in the safetensors shards of an MLX folder.

| file                                                      | content                                       |
|-----------------------------------------------------------|-----------------------------------------------|
| model.safetensors, or model-0000i-of-0000n.safetensors    | arrays; names sorted in the header, wide elements first in the data |
| model.safetensors.index.json                              | always: array -> file, and the sum of bytes   |

Source: mlx-lm `mlx_lm/utils.py`, `make_shards`, `save_model`; the safetensors format specification.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from ...graph.dtypes import DType
from ...graph.roles import Role, Trait
from ...graph.source.checkpoint import SINGLE_FILE
from ...graph.source.safetensors import header_bytes
from ...graph.tensor import Shape
from ...quantize.encoding import Encoding
from ..naming import filled, part_name
from .parameters import module_path

SHARD_BYTES = 5 << 30

# bfloat16 has no type in numpy: its words travel as uint16.
_DTYPES = {"<u4": DType.U32, "|u1": DType.U8, "<f4": DType.F32, "<f2": DType.F16, "<u2": DType.BF16}


@dataclass(frozen=True)
class Array:
    """One stored array: a part of an encoded tensor."""

    name: str
    dtype: DType
    shape: Shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Shard:
    """One file: its header, and the offset of each array from the file's start. Units: bytes."""

    name: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def stored_arrays(parameter: str, role: Role, shape: Shape, encoding: Encoding) -> tuple[Array, ...]:
    """The arrays a weight is stored as, in the order of the encoding's parts."""
    parts = encoding.parts(shape[-1])
    if len(parts) == 1:
        # mlx wants a kernel's channels last: [H, K, 1]
        whole = (*shape, 1) if role.trait is Trait.KERNEL else shape
        return (Array(parameter, _DTYPES[parts[0].dtype.str], whole),)
    module = module_path(parameter)
    return tuple(
        Array(f"{module}.{part.name}", _DTYPES[part.dtype.str], (*shape[:-1], *part.row_shape)) for part in parts
    )


def split(tensors: Sequence[Sequence[Array]]) -> list[Shard]:
    """Fills one shard after the other; the arrays of a tensor stay together, and one too large has its own."""
    sizes = [sum(array.nbytes for array in arrays) for arrays in tensors]
    shards = [[array for arrays in tensors[part] for array in arrays] for part in filled(sizes, max_bytes=SHARD_BYTES)]
    stem, suffix = SINGLE_FILE.split(".")
    return [_shard(part_name(stem, i, len(shards), f".{suffix}"), arrays) for i, arrays in enumerate(shards, 1)]


def _shard(name: str, arrays: Sequence[Array]) -> Shard:
    begins, position = {}, 0
    for array in sorted(arrays, key=lambda a: (-a.dtype.itemsize, a.name)):  # so that each is aligned
        begins[array.name] = position
        position += array.nbytes
    entries: dict[str, object] = {"__metadata__": {"format": "mlx"}}
    for array in sorted(arrays, key=lambda a: a.name):
        begin = begins[array.name]
        offsets = [begin, begin + array.nbytes]
        entries[array.name] = {"dtype": array.dtype.value, "shape": array.shape, "data_offsets": offsets}
    header = header_bytes(entries)
    return Shard(name, header, {n: len(header) + b for n, b in begins.items()}, len(header) + position)


def index_json(shards: Sequence[Shard], *, n_parameters: int) -> bytes:
    """The index of all arrays."""
    homes = {array: shard.name for shard in shards for array in shard.offsets}
    total = sum(shard.nbytes - len(shard.header) for shard in shards)
    metadata = {"total_size": total, "total_parameters": n_parameters}
    return json.dumps({"metadata": metadata, "weight_map": dict(sorted(homes.items()))}, indent=4).encode()
