"""Which arrays a tensor becomes, and where they lie in the safetensors shards of a folder.

| file                                                      | content                                             |
|-----------------------------------------------------------|-----------------------------------------------------|
| model.safetensors, or model-0000i-of-0000n.safetensors    | wide elements first, so that each array is aligned  |
| model.safetensors.index.json                              | of several: array -> file, and the sum of bytes     |

A stack of experts is an array an expert, and part of one run of bytes: those of all experts lie end to end.
Arrays of a few numbers that are no part of rows, such as a shape, lie before all others of a file, behind the header.
Source: safetensors' format; huggingface_hub `serialization/_base.py`; compressed-tensors `compressors/pack_quantized`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ...graph.dtypes import DType
from ...graph.families.places import EXPERT
from ...graph.roles import Trait
from ...graph.source.checkpoint import SINGLE_FILE
from ...graph.source.safetensors import header_bytes
from ...graph.tensor import Shape
from ...quantize.encoding import Encoding, Part, matrix_height
from ...quantize.encodings.ct_base import CtEncoding
from ...quantize.encodings.ct_fp4 import GLOBAL_SCALE, NvFp4
from ...quantize.encodings.ct_int import GroupInt
from ..hub_folder import json_bytes
from ..naming import filled, part_name

_SHAPE = "weight_shape"


@dataclass(frozen=True)
class Array:
    """One array of a file. `constant` are its bytes, of one that is no part of rows."""

    name: str
    dtype: DType
    shape: Shape
    constant: bytes | None = None

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Run:
    """Arrays that lie end to end: one part of a tensor, or a constant of it."""

    arrays: tuple[Array, ...]

    @property
    def name(self) -> str:
        return self.arrays[0].name

    @property
    def is_constant(self) -> bool:
        return self.arrays[0].constant is not None

    @property
    def nbytes(self) -> int:
        return sum(array.nbytes for array in self.arrays)


@dataclass(frozen=True)
class Shard:
    """One file: its header with the constants, and the offset of each array from the file's start. Units: bytes."""

    name: str
    header: bytes
    offsets: dict[str, int]
    nbytes: int


def module_path(parameter: str) -> str:
    """The module that a parameter belongs to."""
    return parameter.rpartition(".")[0]


def stored_runs(parameter: str, trait: Trait, shape: Shape, encoding: Encoding) -> tuple[Run, ...]:
    """The runs of a weight: the parts of its encoding in their order, then the constants.

    `parameter` is the checkpoint's name of it, with "{e}" where an expert's number stands.
    """
    if not isinstance(encoding, CtEncoding):
        whole = (shape[0], 1, shape[1]) if trait is Trait.KERNEL else shape  # as a convolution keeps its taps
        return (_run(parameter, DType(encoding.name), whole),)
    module, n = module_path(parameter), len(shape) - 2
    runs = [
        _run(f"{module}.{part.name}", encoding.dtypes[part.name], (*shape[:n], *_part_shape(part, shape)))
        for part in encoding.parts(shape[-1])
    ]
    return *runs, *(_run(f"{module}.{name}", *value) for name, value in _constants(encoding, shape, n).items())


def _part_shape(part: Part, shape: Shape) -> Shape:
    return part.n_rows(matrix_height(shape)), *part.row_shape


def _constants(encoding: CtEncoding, shape: Shape, n: int) -> dict[str, tuple[DType, Shape, bytes]]:
    """By name. A global scale is not known before the weights are read: its bytes are zeros until then."""
    if isinstance(encoding, GroupInt):
        return {_SHAPE: (DType.I64, (*shape[:n], 2), np.array(shape[n:], "<i8").tobytes())}
    if isinstance(encoding, NvFp4):
        return {GLOBAL_SCALE: (DType.F32, (*shape[:n], 1), bytes(4))}
    return {}


def _run(name: str, dtype: DType, shape: Shape, constant: bytes | None = None) -> Run:
    if EXPERT not in name:
        return Run((Array(name, dtype, shape, constant),))
    return Run(tuple(Array(name.replace(EXPERT, str(e)), dtype, shape[1:], constant) for e in range(shape[0])))


def split(tensors: Sequence[Sequence[Run]], *, max_bytes: int) -> list[Shard]:
    """Fills one shard after the other; the runs of a tensor stay together, and one too large has its own."""
    sizes = [sum(run.nbytes for run in runs) for runs in tensors]
    shards = [[run for runs in tensors[part] for run in runs] for part in filled(sizes, max_bytes=max_bytes)]
    stem, suffix = SINGLE_FILE.split(".")
    return [_shard(part_name(stem, i, len(shards), f".{suffix}"), runs) for i, runs in enumerate(shards, 1)]


def _shard(name: str, runs: Sequence[Run]) -> Shard:
    def place(run: Run) -> tuple[bool, int, str]:
        return not run.is_constant, -run.arrays[0].dtype.itemsize, run.name

    arrays = [array for run in sorted(runs, key=place) for array in run.arrays]
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    begins, position = {}, 0
    for array in arrays:
        begins[array.name] = position
        offsets = [position, position + array.nbytes]
        entries[array.name] = {"dtype": array.dtype.value, "shape": array.shape, "data_offsets": offsets}
        position += array.nbytes
    header = header_bytes(entries)
    start = len(header)
    constants = b"".join(array.constant for array in arrays if array.constant is not None)
    return Shard(name, header + constants, {n: start + b for n, b in begins.items()}, start + position)


def index_json(shards: Sequence[Shard], *, n_parameters: int, n_bytes: int) -> bytes:
    """The index of all arrays."""
    homes = {array: shard.name for shard in shards for array in shard.offsets}
    metadata = {"total_parameters": n_parameters, "total_size": n_bytes}
    return json_bytes({"metadata": metadata, "weight_map": dict(sorted(homes.items()))})
