"""The folder of statistics: what lies in it, and what its files call things.

| file | content |
|---|---|
| statistics.json | version, hashes of what it is of, texts, tokens of every expert, what was borrowed, files |
| imatrix.gguf | the importance file, as llama.cpp reads it: true sums and counts, nothing borrowed |
| tokens.safetensors | `ids` of all chunks end to end, and their `lengths`, int32 |
| columns.safetensors | of each matrix the mean square of each column's input [slices, columns], float32 |
| gradients.safetensors | of each matrix the sum over tokens of squared output gradients [slices, rows], float32; what those of a tied table have of lookups |
| moments/NAME.safetensors | if they are wanted: `moments` [slices, columns * (columns + 1) / 2] of one input, float32 |

Matrices are called as in GGUF, by their role. Slices are the experts of a stack, else one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import DType, Float32
from ...graph.graph import WeightGraph
from ...graph.roles import MATRICES, Address, Role, Trait
from ...graph.source.safetensors import header_bytes
from ...graph.tensor import Shape
from ..gguf_file.tensor_names import tensor_name
from .inputs import input_of
from .triangle import n_packed

VERSION = 1
STATISTICS_FILE = "statistics.json"
TOKENS_FILE, COLUMNS_FILE, GRADIENTS_FILE = "tokens.safetensors", "columns.safetensors", "gradients.safetensors"
IDS, LENGTHS, MOMENTS, LOOKUPS = "ids", "lengths", "moments", "token_embd.lookups"

_DTYPES = {"float32": DType.F32, "int32": DType.I32}


def measured_weights(graph: WeightGraph) -> dict[Address, Shape]:
    """What statistics are of: matrices, routers and the token table, by address."""
    return {
        weight.address: weight.shape
        for weight in graph.weights()
        if weight.role in MATRICES or weight.role.trait in (Trait.ROUTER, Trait.TABLE)
    }


def moments_file(address: Address) -> str:
    """Where the moments of a matrix's input are, from the folder."""
    name = tensor_name(input_of(address)).removesuffix(".weight")
    return f"moments/{name}.safetensors"


def moments_bytes(graph: WeightGraph) -> int:
    """Bytes of all moments, headers aside."""
    shapes = measured_weights(graph)
    own = [shape for address, shape in shapes.items() if has_moments(graph, address) and input_of(address) == address]
    return sum(4 * (shape[0] if len(shape) == 3 else 1) * n_packed(shape[-1]) for shape in own)


def has_moments(graph: WeightGraph, address: Address) -> bool:
    """Whether a weight is multiplied with something: a table that is no head is not."""
    return address[0] is not Role.EMBED or graph.is_tied


def write_arrays(path: Path, arrays: Mapping[str, NDArray[Any]]) -> None:
    """A safetensors file of float32 and int32 arrays."""
    entries: dict[str, object] = {}
    position = 0
    for name, array in arrays.items():
        entries[name] = _entry(str(array.dtype), array.shape, position)
        position += array.nbytes
    with path.open("wb") as file:
        file.write(header_bytes(entries))
        for array in arrays.values():
            file.write(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())


class Slices(Protocol):
    """Takes the packed moments of one slice after the other."""

    def __call__(self, packed: Float32) -> None: ...


@contextmanager
def written_moments(path: Path, shape: Shape) -> Iterator[Slices]:
    """A file of moments [slices, packed], of which one slice at a time is in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(header_bytes({MOMENTS: _entry("float32", shape, 0)}))

        def write(packed: Float32) -> None:
            file.write(packed.astype("<f4", copy=False).tobytes())

        yield write


def _entry(dtype: str, shape: Shape, start: int) -> dict[str, object]:
    n_bytes = 4 * int(np.prod(shape, dtype=np.int64))
    return {"dtype": _DTYPES[dtype].value, "shape": list(shape), "data_offsets": [start, start + n_bytes]}
