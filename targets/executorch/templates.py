"""Regions lowered to XNNPACK once and reused for every layer and expert they look the same in.

Lowering costs seconds of passes whatever a matrix holds, so a region is lowered around stand-ins. A delegate for other
weights is the same blob with other names of the same length, and those names lead to ranges of the scratch file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from operator import getitem
from typing import Any

import torch
from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
from executorch.exir import EdgeCompileConfig, to_edge_transform_and_lower
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from executorch.exir._serialize.data_serializer import DataEntry
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.lowered_backend_module import LoweredBackendModule
from torch import Tensor, nn
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import (
    _apply_int8_act_asym_per_token_quant_dequant,
)
from torchao.utils import unwrap_tensor_subclass

from .constants import Constants, Matrix
from .regions import REGIONS, Matrices, RegionName
from .stand_ins import StandIns
from .stored import Piece, Stored

EDGE_CONFIG = EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True)
_ALIGNMENT = 16  # of XNNPACK's constants
Shape = tuple[int | None, ...]  # None is the number of tokens of a call


@dataclass(frozen=True)
class Delegate:
    """A lowered region, ready to be called.

    Lowering may reorder: the delegate's input i is the region's inputs[i], result i is its output outputs[i].
    """

    lowered: LoweredBackendModule
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]


@dataclass(frozen=True)
class _Template(Delegate):
    """A region lowered around stand-ins; `keys` are their names in the order of its matrices' pieces."""

    keys: tuple[str, ...]


class Templates:
    """Lowers regions as they are met. `longest` is the most tokens of a call.

    `data_file` is the name of the file beside the program that the weights go to, if they go to one.
    """

    def __init__(self, constants: Constants, *, longest: int, data_file: str | None) -> None:
        self._constants, self._longest, self._data_file = constants, longest, data_file
        self._made: dict[Any, _Template] = {}

    def delegate(self, text: str, inputs: Sequence[Tensor]) -> Delegate:
        """The delegate of one region, for inputs of these (fake) shapes."""
        name = RegionName.parse(text)
        matrices = self._constants.matrices(name)
        shapes = fixed_shapes(inputs)
        kind = name.kind, shapes, tuple((matrix.encoding, matrix.shape) for matrix in matrices)
        if kind not in self._made:
            self._made[kind] = self._lower(name.kind, shapes, matrices)
        pieces = [piece for matrix in matrices for piece in matrix.pieces]
        return _stamp(self._made[kind], pieces, self._data_file)

    def _lower(self, kind: str, shapes: Sequence[Shape], matrices: Sequence[Matrix]) -> _Template:
        stand_ins = StandIns()
        is_float = all(matrix.encoding == "F32" for matrix in matrices)
        with stand_ins.in_place():
            delegate = lower_region(
                kind,
                shapes,
                [stand_ins.matrix(matrix) for matrix in matrices],
                quantize=unchanged if is_float else rounded_to_int8,
                longest=self._longest,
                partitioner=XnnpackPartitioner(),
            )
        keys = stand_ins.keys(delegate.lowered.named_data_store_output)
        if any(delegate.lowered.processed_bytes.count(key.encode()) != 1 for key in keys):
            raise ValueError(f"the delegate of region '{kind}' does not name its matrices, each once")
        return _Template(delegate.lowered, delegate.inputs, delegate.outputs, keys)


def fixed_shapes(inputs: Sequence[Tensor]) -> tuple[Shape, ...]:
    """Shapes of (fake) inputs, None for the number of tokens."""
    return tuple(tuple(None if isinstance(n, torch.SymInt) else n for n in each.shape) for each in inputs)


def lower_region(
    kind: str,
    shapes: Sequence[Shape],
    weights: Sequence[Tensor],
    *,
    quantize: Callable[[Tensor], Tensor],
    longest: int,
    partitioner: Any,
) -> Delegate:
    """One region as one call of a delegate. `longest` is the most tokens of a call."""
    region = _Traced(kind, weights, quantize).eval()
    unwrap_tensor_subclass(region)
    tokens = torch.export.Dim("tokens", max=longest)
    example = tuple(torch.zeros(*(3 if n is None else n for n in shape)) for shape in shapes)
    dynamic = tuple({i: tokens for i, n in enumerate(shape) if n is None} for shape in shapes)
    with torch.no_grad():
        program = torch.export.export(region, example, dynamic_shapes=(dynamic,))
    edge = to_edge_transform_and_lower(program, partitioner=[partitioner], compile_config=EDGE_CONFIG)
    return _only_delegate(edge.exported_program(), kind, shapes)


class _Traced(nn.Module):
    """A region's function as a module that owns its matrices."""

    def __init__(self, kind: str, weights: Sequence[Tensor], quantize: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function, self.quantize = REGIONS[kind].function, quantize
        self.weights = nn.ParameterList(nn.Parameter(weight, requires_grad=False) for weight in weights)

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return self.function(Matrices(list(self.weights), self.quantize), *inputs)


def unchanged(x: Tensor) -> Tensor:
    return x


def rounded_to_int8(x: Tensor) -> Tensor:
    """x as the nearest of 256 steps between the least and the largest of its row."""
    found: Tensor = _apply_int8_act_asym_per_token_quant_dequant(x)
    return found


def _only_delegate(program: torch.export.ExportedProgram, kind: str, shapes: Sequence[Shape]) -> Delegate:
    """Raises ValueError unless a delegate took all of a region: what it leaves would be lost. `shapes` are its inputs'."""
    graph_module = program.graph_module
    calls = [node for node in graph_module.graph.nodes if node.op == "call_function" and node.target is not getitem]
    if len(calls) != 1 or calls[0].target is not executorch_call_delegate:
        raise ValueError(f"no delegate takes region '{kind}' whole: {[str(node.target) for node in calls]}")
    lowered: LoweredBackendModule = getattr(graph_module, calls[0].args[0].target)
    names = program.graph_signature.user_inputs
    inputs = tuple(names.index(node.name) for node in calls[0].args[1:])
    results = [node.meta["val"] for node in lowered.original_module.graph.output_node().args[0]]
    call = partial(_results, [shapes[i] for i in inputs], fixed_shapes(results))
    lowered.original_module.module = lambda: call  # later passes only look for the shapes of what a delegate gives
    outputs = tuple(node.args[1] for node in graph_module.graph.output_node().args[0])
    return Delegate(lowered, inputs, outputs)


def _results(expected: Sequence[Shape], shapes: Sequence[Shape], *inputs: Tensor) -> tuple[Tensor, ...]:
    """What a delegate gives for (fake) inputs, of these shapes; one of the `expected` ones has the number of tokens."""
    sizes = [x.shape[i] for x, shape in zip(inputs, expected, strict=True) for i, n in enumerate(shape) if n is None]
    return tuple(inputs[0].new_empty([sizes[0] if n is None else n for n in shape]) for shape in shapes)


def _stamp(template: _Template, pieces: Sequence[Piece], data_file: str | None) -> Delegate:
    """The template's delegate with other weights."""
    blob = template.lowered.processed_bytes
    entries: dict[str, DataEntry] = {}
    in_program, outside = ({}, {data_file: entries}) if data_file else (entries, {})
    store = NamedDataStoreOutput([], in_program, outside)
    for old, piece in zip(template.keys, pieces, strict=True):
        new = data_key(piece, len(old))
        blob = blob.replace(old.encode(), new.encode())
        entries[new] = DataEntry(len(store.buffers), _ALIGNMENT, None)
        store.buffers.append(Stored([piece]))
    lowered = template.lowered
    stamped = LoweredBackendModule(lowered.original_module, lowered.backend_id, blob, lowered.compile_specs, store)
    return Delegate(stamped, template.inputs, template.outputs)


def data_key(piece: Piece, length: int) -> str:
    """A name that says what the data is and, as XNNPACK's caches demand, changes with its content."""
    return f"{piece.label}.{piece.digest}"[:length]
