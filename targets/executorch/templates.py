"""Regions lowered to XNNPACK once and reused for every layer and expert they look the same in.

Lowering costs seconds of passes whatever a matrix holds, so a region is lowered around stand-ins: zeros the
system never backs with memory, behind a mark that tells them apart. XNNPACK names its constants by the hash of their
bytes; a delegate for other weights is the same blob with other names of the same length, and those names
lead to ranges of the scratch file.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir._serialize._cord import FileBackedData
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize.data_serializer import DataEntry
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from numpy.typing import NDArray
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    IntxUnpackedToInt8Tensor,
    _apply_int8_act_asym_per_token_quant_dequant,
)
from torchao.utils import unwrap_tensor_subclass

from ...convert.model.dtypes import to_bfloat16
from .constants import Constants, Matrix, Piece
from .regions import REGIONS, Matrices, RegionName

EDGE_CONFIG = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
_ALIGNMENT = 16  # of XNNPACK's constants
_COPY_BYTES = 8 << 20


class FileRange(FileBackedData):  # type: ignore[misc]
    """A piece of the scratch file as executorch's serialiser takes data that is not in memory."""

    def __init__(self, piece: Piece) -> None:
        self._piece = piece

    def __len__(self) -> int:
        return self._piece.nbytes

    def prefix(self, size: int) -> bytes:
        with self._piece.path.open("rb") as file:
            file.seek(self._piece.offset)
            return file.read(min(size, len(self)))

    def sha256(self) -> bytes:
        return bytes.fromhex(self._piece.digest)

    def to_bytes(self) -> bytes:
        return self.prefix(len(self))

    def write_to_file(self, outfile: io.BufferedIOBase) -> None:
        left = len(self)
        with self._piece.path.open("rb") as file:
            file.seek(self._piece.offset)
            while left:
                left -= outfile.write(file.read(min(left, _COPY_BYTES)))


@dataclass(frozen=True)
class _Template:
    """A lowered region, and the names of its stand-ins in the order of its matrices' pieces.

    Lowering may reorder: the delegate's input i is the region's inputs[i], result i is its output outputs[i].
    """

    lowered: LoweredBackendModule
    keys: tuple[str, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class Delegate:
    """A region ready to be called; inputs and outputs as in its template."""

    lowered: LoweredBackendModule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


class Templates:
    """Lowers regions as they are met. `longest` is the most tokens of a call."""

    def __init__(self, constants: Constants, *, longest: int) -> None:
        self._constants, self._longest = constants, longest
        self._made: dict[Any, _Template] = {}

    def delegate(self, text: str, inputs: Sequence[Tensor]) -> Delegate:
        """The delegate of one region, for inputs of these (fake) shapes."""
        name = RegionName.parse(text)
        matrices = self._constants.matrices(name)
        shapes = tuple(tuple(None if isinstance(n, torch.SymInt) else n for n in each.shape) for each in inputs)
        kind = name.kind, shapes, tuple((matrix.encoding, matrix.shape) for matrix in matrices)
        if kind not in self._made:
            self._made[kind] = self._lower(name.kind, shapes, matrices)
        return _stamp(self._made[kind], [piece for matrix in matrices for piece in matrix.pieces])

    def _lower(self, kind: str, shapes: Sequence[tuple[int | None, ...]], matrices: Sequence[Matrix]) -> _Template:
        marks = _Marks()
        is_float = all(matrix.encoding == "F32" for matrix in matrices)
        quantize = _unchanged if is_float else _apply_int8_act_asym_per_token_quant_dequant
        region = _Traced(kind, [marks.matrix(matrix) for matrix in matrices], quantize).eval()
        unwrap_tensor_subclass(region)
        tokens = torch.export.Dim("tokens", max=self._longest)
        example = tuple(torch.zeros(*(3 if n is None else n for n in shape)) for shape in shapes)
        dynamic = tuple({i: tokens for i, n in enumerate(shape) if n is None} for shape in shapes)
        with torch.no_grad():
            program = torch.export.export(region, example, dynamic_shapes=(dynamic,))
        edge = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()], compile_config=EDGE_CONFIG)
        return _template(edge.exported_program(), kind, marks)


class _Traced(nn.Module):
    """A region's function as a module that owns its matrices."""

    def __init__(self, kind: str, weights: Sequence[Tensor], quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.quantize = REGIONS[kind].function, quantize
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(Matrices(list(self.weights), self.quantize), *inputs)


def _unchanged(x: Tensor) -> Tensor:
    return x


class _Marks:
    """Makes stand-ins, and finds them again among XNNPACK's constants by their first element and their size."""

    def __init__(self) -> None:
        self._marks: list[tuple[int, bytes]] = []

    def matrix(self, matrix: Matrix) -> Tensor:
        """A stand-in of the type whose `functional.linear` becomes XNNPACK's."""
        if matrix.encoding == "F32":
            return self._stand_in(matrix.pieces[0], matrix.shape)
        values, scales = matrix.pieces
        n_rows, n_cols = matrix.shape
        n_scales = scales.nbytes // scales.dtype.itemsize // n_rows
        return IntxUnpackedToInt8Tensor(
            qdata=self._stand_in(values, matrix.shape),
            scale=self._stand_in(scales, (n_rows, n_scales)),
            zero_point=torch.zeros(n_rows, n_scales, dtype=torch.int8),
            target_dtype=torch.int4 if values.dtype == np.uint8 else torch.int8,  # type: ignore[attr-defined]
            block_size=(1, n_cols // n_scales),
            dtype=torch.float32,
            activation_quantization=None,  # a region rounds what it multiplies, once for several matrices
        )

    def _stand_in(self, piece: Piece, shape: tuple[int, int]) -> Tensor:
        mark = np.array([len(self._marks) + 1], np.float32)
        kind: np.dtype[Any]
        stored: NDArray[Any]
        if piece.dtype == np.uint8:  # 4-bit codes: a byte each here, stored as two nibbles of code + 8
            kind, stored = np.dtype("i1"), (mark.astype(np.uint8) + 8) | 8 << 4
        elif piece.dtype == np.uint16:  # bfloat16 scales: float32 here
            kind, stored = np.dtype("<f4"), to_bfloat16(mark)
        else:
            kind, stored = piece.dtype, mark.astype(piece.dtype)
        self._marks.append((piece.nbytes, stored.tobytes()))
        zeros = np.zeros(shape, kind)  # torch.zeros would touch every page
        zeros[0, 0] = mark[0]
        return torch.from_numpy(zeros)

    def keys(self, store: NamedDataStoreOutput) -> tuple[str, ...]:
        """The name of each stand-in, in the order they were made."""
        data = {key: store.buffers[entry.buffer_index] for key, entry in store.pte_data.items()}
        return tuple(
            next(key for key, found in data.items() if len(found) == n_bytes and found.startswith(first))
            for n_bytes, first in self._marks
        )


def _template(program: torch.export.ExportedProgram, kind: str, marks: _Marks) -> _Template:
    """Raises ValueError unless XNNPACK took all of a region: what it leaves would be lost."""
    graph_module = program.graph_module
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function" and node.target is not getitem]
    if len(calls) != 1 or calls[0].target is not executorch_call_delegate:
        raise ValueError(f"XNNPACK does not take region '{kind}' whole: {[str(node.target) for node in calls]}")
    lowered: LoweredBackendModule = getattr(graph_module, calls[0].args[0].target)
    names = program.graph_signature.user_inputs
    return _Template(
        lowered=lowered,
        keys=marks.keys(lowered.named_data_store_output),
        inputs=tuple(names.index(node.name) for node in calls[0].args[1:]),
        outputs=tuple(node.args[1] for node in graph_module.graph.output_node().args[0]),
    )


def _stamp(template: _Template, pieces: Sequence[Piece]) -> Delegate:
    """The template's delegate with other weights."""
    blob = template.lowered.processed_bytes
    store = NamedDataStoreOutput([], {}, {})
    for old, piece in zip(template.keys, pieces, strict=True):
        new = data_key(piece, len(old))
        blob = blob.replace(old.encode(), new.encode())
        store.pte_data[new] = DataEntry(len(store.buffers), _ALIGNMENT, None)
        store.buffers.append(FileRange(piece))
    lowered = template.lowered
    stamped = LoweredBackendModule(lowered.original_module, lowered.backend_id, blob, lowered.compile_specs, store)
    return Delegate(stamped, template.inputs, template.outputs)


def data_key(piece: Piece, length: int) -> str:
    """A name that says what the data is and, as XNNPACK's caches demand, changes with its content."""
    return f"{piece.label}.{piece.digest}"[:length]
