"""Calls of delegates in a graph: one as it is, one that only happens if a condition holds."""

from __future__ import annotations

from collections.abc import Sequence
from operator import getitem
from typing import Any

import torch
from executorch.exir.delegate import executorch_call_delegate
from executorch.exir.dialects._ops import ops
from torch.fx import Graph, GraphModule, Node

from .templates import Delegate


def values(nodes: Sequence[Node]) -> list[Any]:
    """The (fake) values of nodes."""
    return [node.meta["val"] for node in nodes]


def call_delegate(owner: GraphModule, name: str, delegate: Delegate, inputs: Sequence[Node]) -> Node:
    """Calls a delegate at the graph's insertion point; its value is left to the caller."""
    attribute = f"lowered_{name.replace('.', '_')}"
    owner.add_module(attribute, delegate.lowered)
    lowered = owner.graph.get_attr(attribute)
    lowered.meta["val"] = delegate.lowered
    return owner.graph.call_function(executorch_call_delegate, (lowered, *(inputs[i] for i in delegate.inputs)))


def call_if(owner: GraphModule, condition: Node, name: str, delegate: Delegate, inputs: Sequence[Node]) -> Node:
    """A tuple of the delegate's one result, shaped as its first input, or of zeros if the condition fails.

    The result must be used up before another such call: one that is still wanted then may be overwritten.
    Source: executorch issue #21490.
    """
    run, arguments = _branch(inputs)
    call = call_delegate(run, name, delegate, arguments)
    call.meta["val"] = values(inputs[:1])
    _close(run, run.graph.call_function(getitem, (call, 0)), inputs[0])
    rest, arguments = _branch(inputs)
    _close(rest, rest.graph.call_function(ops.edge.aten.full_like.default, (arguments[0], 0.0)), inputs[0])
    branches = []
    for kind, branch in (("run", run), ("rest", rest)):
        attribute = f"{kind}_{name.replace('.', '_')}"
        owner.add_module(attribute, branch)
        branches.append(owner.graph.get_attr(attribute))
    chosen = owner.graph.call_function(torch.ops.higher_order.cond, (condition, *branches, tuple(inputs)))
    chosen.meta["val"] = tuple(values(inputs[:1]))
    return chosen


def _branch(inputs: Sequence[Node]) -> tuple[GraphModule, list[Node]]:
    """A module with one argument for each input."""
    module = GraphModule({}, Graph())
    arguments = [module.graph.placeholder(f"x{i}") for i in range(len(inputs))]
    for argument, value in zip(arguments, values(inputs), strict=True):
        argument.meta["val"] = value
    return module, arguments


def _close(module: GraphModule, result: Node, like: Node) -> None:
    result.meta["val"] = like.meta["val"]
    module.graph.output((result,))
    module.recompile()
