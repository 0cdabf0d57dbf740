"""From a graph and its encoded tensors to a .pte: trace, put delegates in the regions' places, serialise."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from executorch.exir import EdgeProgramManager, ExecutorchBackendConfig, to_edge
from executorch.exir.passes import MemoryPlanningPass

from ...convert.model.graph import WeightGraph
from .calls import call_delegate, call_if, values
from .constants import Constants
from .layout import INDEX_KEY
from .module import Lfm2
from .regions import EXPERT, LIBRARY, RegionName
from .templates import EDGE_CONFIG, Templates

_EXAMPLE_TOKENS = 3


def write_pte(
    graph: WeightGraph, constants: Constants, path: Path, *, context: int, metadata: Mapping[str, Any]
) -> None:
    """Lowers the model and writes it; `metadata` become the file's constant methods."""
    edge = to_edge(_trace(graph, constants, context), constant_methods=dict(metadata), compile_config=EDGE_CONFIG)
    program = edge.exported_program()
    templates = Templates(constants, longest=context)
    _delegate_regions(program.graph_module, templates)
    edge = EdgeProgramManager(program, dict(metadata), EDGE_CONFIG)  # collects the delegates' data anew
    edge._named_data_store.add_named_data(INDEX_KEY, json.dumps(constants.index).encode())
    config = ExecutorchBackendConfig(memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False))
    with path.open("wb") as file:
        edge.to_executorch(config).write_to_file(file)


def _trace(graph: WeightGraph, constants: Constants, context: int) -> torch.export.ExportedProgram:
    import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401  # embedding operators
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # cache and attention operators

    module = Lfm2(graph, constants, context=context).eval()
    tokens = torch.zeros(1, _EXAMPLE_TOKENS, dtype=torch.int64)
    dynamic = {1: torch.export.Dim("tokens", max=context)}, None
    with torch.no_grad():
        return torch.export.export(module, (tokens, torch.zeros(1, dtype=torch.int64)), dynamic_shapes=dynamic)


def _delegate_regions(graph_module: torch.fx.GraphModule, templates: Templates) -> None:
    """Replaces every call of a region by a call of its delegate, an expert's inside a branch."""
    for node in graph_module.graph.nodes:
        if node.op != "call_function" or LIBRARY not in str(node.target):
            continue
        name, inputs = node.args[1], node.args[0]
        with graph_module.graph.inserting_before(node):
            if RegionName.parse(name).kind == EXPERT:
                *inputs, condition = inputs
                call = call_if(graph_module, condition, name, templates.delegate(name, values(inputs)), inputs)
                node.replace_all_uses_with(call)
            else:
                delegate = templates.delegate(name, values(inputs))
                call = call_delegate(graph_module, name, delegate, inputs)
                for user in list(node.users):  # each takes one result
                    user.args = call, delegate.outputs[user.args[1]]
                call.meta["val"] = [node.meta["val"][delegate.outputs.index(i)] for i in range(len(delegate.outputs))]
        graph_module.graph.erase_node(node)
    graph_module.recompile()
