"""The experts of a mixture from its first: one is traced and goes through executorch's passes, the others are copies.

The passes take a fifth of a second for every branch of a program and keep a megabyte of it, and a mixture of 8 billion
weights has 704 experts that differ by a number and by the names of their weights. Their nodes are added when all
passes are over, before memory is planned: from there on the graph is what it would be if each had been traced.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from executorch.exir.passes import MemoryPlanningPass
from executorch.exir.tensor import TensorSpec
from torch.export.graph_signature import ExportGraphSignature
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult
from torch.utils import _pytree as pytree

from .templates import Delegate

_SLICE, _SELECT = torch.ops.aten.slice_copy.Tensor_out, torch.ops.aten.select_copy.int_out
# What planning and emission read of a node.
_READ = ("val", "spec")


class PlanningWithExperts(MemoryPlanningPass):  # type: ignore[misc]
    """Executorch's planning of memory, of a graph to which the experts are added. `mixtures` are the delegates of each
    layer's experts, the first of which is in the graph.
    """

    def __init__(self, mixtures: Sequence[Sequence[Delegate]]) -> None:
        super().__init__(alloc_graph_input=False)
        self._mixtures = mixtures

    def run(self, graph_module: GraphModule, graph_signature: ExportGraphSignature | None = None) -> PassResult:
        GraphModule.recompile = _write_no_code  # type: ignore[method-assign, assignment]
        first = [node for node in graph_module.graph.nodes if node.target is torch.ops.higher_order.cond]
        for branch, delegates in zip(first, self._mixtures, strict=True):
            _add_experts(graph_module, branch, delegates)
        return super().run(graph_module, graph_signature)


@contextmanager
def code_as_before() -> Iterator[None]:
    """Undoes at its end what planning does away with: the Python code of graphs, which nothing runs from there on.

    That of a mixture takes 60 MB to write.
    """
    recompile = GraphModule.recompile
    try:
        yield
    finally:
        GraphModule.recompile = recompile  # type: ignore[method-assign]


def _write_no_code(graph_module: GraphModule) -> None:
    pass


def _add_experts(owner: GraphModule, branch: Node, delegates: Sequence[Delegate]) -> None:
    """Adds all experts of a layer but the first, each after the one before it, to whose sum it adds."""
    nodes = list(_of_expert(branch))
    begin, last = nodes[-1].args[0], nodes[-1]
    users = list(last.users)
    with owner.graph.inserting_before(last.next):
        for number, delegate in enumerate(delegates[1:], start=1):
            last = _copied(owner, nodes, {begin: last}, number, delegate)
    for user in users:
        user.replace_input_with(nodes[-1], last)


def _of_expert(branch: Any) -> Iterator[Any]:
    """The nodes of one expert: from the memory for its share of the tokens to the sum that it is added to."""
    share = branch.args[3][-1]
    (found,) = branch.users
    (total,) = found.users
    node = share.kwargs["out"]
    while node is not total:
        yield node
        node = node.next
    yield total


def _copied(
    owner: GraphModule, nodes: Sequence[Any], known: Mapping[Node, Node], number: int, delegate: Delegate
) -> Node:
    """Copies of the first expert's nodes for another, at the graph's insertion point. Returns the last."""
    made, specs = dict(known), _Specs()
    for node in nodes:
        if node.op == "get_attr":
            attribute = f"{node.target}_{number}"
            owner.add_module(attribute, _branch(getattr(owner, node.target), delegate))
            found = owner.graph.get_attr(attribute)
        else:
            found = owner.graph.node_copy(node, lambda n: made.get(n, n))
            if node.target is _SLICE:
                found.args = (*found.args[:2], number, number + 1)
            elif node.target is _SELECT:
                found.args = (*found.args[:2], number)
        found.meta = specs.copied(node)
        made[node] = found
    return found


def _branch(first: GraphModule, delegate: Delegate) -> GraphModule:
    """A branch of the first expert as another's."""
    graph, specs = Graph(), _Specs()
    root: dict[str, Any] = {}
    made: dict[Node, Node] = {}
    for node in first.graph.nodes:
        if node.op == "get_attr":
            root[node.target] = delegate.lowered
        found = graph.node_copy(node, lambda n: made[n])
        found.meta = specs.copied(node)
        made[node] = found
    return GraphModule(root, graph)


class _Specs:
    """Copies what is known of values: what two nodes of a copy share is one object, and none that the original has."""

    def __init__(self) -> None:
        self._made: dict[int, TensorSpec] = {}

    def copied(self, node: Node) -> dict[str, Any]:
        meta = {key: node.meta[key] for key in _READ if key in node.meta}
        if "spec" in meta:
            meta["spec"] = pytree.tree_map_only(TensorSpec, self._copy, meta["spec"])
        return meta

    def _copy(self, spec: TensorSpec) -> TensorSpec:
        return self._made.setdefault(id(spec), copy.copy(spec))
