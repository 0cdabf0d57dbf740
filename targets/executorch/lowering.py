"""From a graph and its encoded tensors to a .pte: trace, put delegates in the regions' places, serialise."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig, to_edge
from executorch.exir._serialize._named_data_store import NamedDataStore
from executorch.exir.emit._emitter import _Emitter
from executorch.exir.program import _program
from executorch.exir.schema import Program
from torch.export._remove_auto_functionalized_pass import unsafe_remove_auto_functionalized_pass

from ...graph.graph import WeightGraph
from .backends import XNNPACK
from .calls import call_delegate, call_if, values
from .constants import Constants
from .experts import PlanningWithExperts, code_as_before
from .layout import INDEX_KEY
from .module import Model
from .regions import EXPERT, LIBRARY, RegionName
from .templates import EDGE_CONFIG, Delegate, Templates

if TYPE_CHECKING:
    from .foreign import ForeignRegions

_EXAMPLE_TOKENS = 3


def write_pte(
    graph: WeightGraph,
    constants: Constants,
    paths: Sequence[Path],
    *,
    context: int,
    metadata: Mapping[str, Any],
    backend: str = XNNPACK,
) -> None:
    """Lowers the model and writes it; `metadata` become the file's constant methods.

    `backend` is one of `BACKENDS`. `paths` are the program's and, if the weights do not go into the program, that of the file they go to.
    """
    path, *data = paths
    data_file = data[0].name if data else None
    edge = to_edge(_trace(graph, constants, context), constant_methods=dict(metadata), compile_config=EDGE_CONFIG)
    program = unsafe_remove_auto_functionalized_pass(edge.exported_program())
    templates = Templates(constants, longest=context, data_file=data_file)
    regions = _Regions(_lowering(backend, constants, templates, context), constants)
    regions.delegate(program.graph_module)
    edge = EdgeProgramManager(program, dict(metadata), EDGE_CONFIG)
    edge._named_data_store = regions.data()
    edge._named_data_store.add_named_data(INDEX_KEY, json.dumps(constants.index).encode())

    def home(node: torch.fx.Node) -> str | None:
        buffer = program.graph_signature.inputs_to_buffers.get(node.name)
        return data_file if buffer and constants.stands_in(program.state_dict[buffer]) else None

    config = ExecutorchBackendConfig(
        memory_planning_pass=PlanningWithExperts(regions.mixtures),
        external_constants=home if data_file else False,
    )
    with path.open("wb") as file, _serialising(constants), code_as_before():
        written = edge.to_executorch(config)
        written.write_to_file(file)
        if data_file:
            written.write_tensor_data_to_file(path.parent)


def _lowering(backend: str, constants: Constants, templates: Templates, context: int) -> Templates | ForeignRegions:
    if backend == XNNPACK:
        return templates
    from .foreign import ForeignRegions

    return ForeignRegions(backend, constants, longest=context, rest=templates)


@contextmanager
def _serialising(constants: Constants) -> Iterator[None]:
    """Three changes to executorch while it makes a file.

    A constant that is a stand-in is emitted as what it stands in for, so that it is never held in memory. The pass
    that takes out functionalised operators, done before the branches came, is not done again: it goes over the
    whole graph for every branch. The program is not copied before it is written, since nothing uses it afterwards.
    """
    emit, remove = _Emitter._save_new_const_tensor, _program.unsafe_remove_auto_functionalized_pass

    def save(self: _Emitter, spec: Any, data: bytes, *arguments: Any) -> Any:
        return emit(self, spec, constants.stored(data), *arguments)

    _Emitter._save_new_const_tensor = save
    _program.unsafe_remove_auto_functionalized_pass = lambda program: program
    Program.__deepcopy__ = lambda program, memo: program
    try:
        yield
    finally:
        _Emitter._save_new_const_tensor, _program.unsafe_remove_auto_functionalized_pass = emit, remove
        del Program.__deepcopy__


def _trace(graph: WeightGraph, constants: Constants, context: int) -> torch.export.ExportedProgram:
    import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  # embedding operators
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # cache and attention operators

    module = Model(graph, constants, context=context).eval()
    tokens = torch.zeros(1, _EXAMPLE_TOKENS, dtype=torch.int64)
    dynamic = {1: torch.export.Dim("tokens", max=context)}, None
    with torch.no_grad():
        return torch.export.export(module, (tokens, torch.zeros(1, dtype=torch.int64)), dynamic_shapes=dynamic)


class _Regions:
    """Puts calls of delegates in the places of a graph's calls of regions.

    `mixtures` are the delegates of all experts, layer by layer: of each layer the graph has the first, inside a branch.
    """

    def __init__(self, lowering: Templates | ForeignRegions, constants: Constants) -> None:
        self._lowering, self._constants = lowering, constants
        self._others: list[Delegate] = []
        self.mixtures: list[list[Delegate]] = []

    def delegate(self, graph_module: torch.fx.GraphModule) -> None:
        for node in graph_module.graph.nodes:
            if node.op != "call_function" or LIBRARY not in str(node.target):
                continue
            with graph_module.graph.inserting_before(node):
                if RegionName.parse(node.args[1]).kind == EXPERT:
                    self._mixture(graph_module, node)
                else:
                    self._call(graph_module, node)
            graph_module.graph.erase_node(node)
        graph_module.recompile()

    def data(self) -> NamedDataStore:
        """The data of all delegates, in the order in which executorch itself collects it: that of branches comes last."""
        store = NamedDataStore()
        for delegate in chain(self._others, *self.mixtures):
            if delegate.lowered.named_data_store_output is not None:
                store.merge_named_data_store(delegate.lowered.named_data_store_output)
        return store

    def _mixture(self, graph_module: torch.fx.GraphModule, node: Any) -> None:
        (*inputs, condition), name = node.args[:2]
        layer = RegionName.parse(name).layer
        names = [f"{EXPERT}.{layer}.{expert}" for expert in range(self._constants.n_experts(layer))]
        found = [self._lowering.delegate(each, values(inputs)) for each in names]
        self.mixtures.append(found)
        node.replace_all_uses_with(call_if(graph_module, condition, name, found[0], inputs))

    def _call(self, graph_module: torch.fx.GraphModule, node: Any) -> None:
        inputs, name = node.args[:2]
        delegate = self._lowering.delegate(name, values(inputs))
        self._others.append(delegate)
        call = call_delegate(graph_module, name, delegate, inputs)
        for user in list(node.users):  # each takes one result
            user.args = call, delegate.outputs[user.args[1]]
        call.meta["val"] = [node.meta["val"][delegate.outputs.index(i)] for i in range(len(delegate.outputs))]
