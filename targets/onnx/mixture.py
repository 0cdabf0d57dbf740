"""Mixture of experts, unrolled into conditionals or as one node."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from ...graph.blocks import Mixture, Scoring
from ...graph.graph import Layer, Weight
from ...graph.roles import Role
from ...graph.tensor import WindowTensor
from .builder import GraphBuilder
from .dense import gated_silu
from .linear import matmul
from .prelude import Context
from .qmoe import fused_experts
from .store import Matrix, WeightStore


def mixture(context: Context, block: Mixture, layer: Layer, x: str) -> str:
    """Weighted sum of the chosen experts of each token; an expert that no token chose is skipped whole.

    One `If` an expert: inside, its tokens are gathered, run through it and added to the sum in float32.
    This form reads only chosen experts, and runs on every ONNX Runtime; `fused_experts` asks for one QMoE node instead.
    """
    b = context.b
    tokens = b.reshape(x, -1, layer.weights[Role.ROUTER].view.n_cols)
    return b.op("Reshape", _of_tokens(context, block, layer, tokens), b.op("Shape", x))


def _of_tokens(context: Context, block: Mixture, layer: Layer, x: str) -> str:
    """The sum [T, H] of tokens [T, H]."""
    b, store = context.b, context.store
    with b.scope("router"):
        ranks, weights = _route(b, store, layer, block, b.to_float32(x))
    if context.fused_experts:
        return fused_experts(b, store, layer, block, x, ranks, weights)
    with b.scope("router"):
        used = b.op("Greater", b.op("ReduceSum", b.op("Abs", weights), b.ints(0)), b.scalar(0))
        columns, is_used = (
            b.ops("Split", table, outputs=[None] * block.n_experts, axis=1, num_outputs=block.n_experts)
            for table in (weights, used)
        )
    total = b.op("Mul", b.to_float32(x), b.scalar(0))
    for expert, (column, flag) in enumerate(zip(columns, is_used, strict=True)):
        with b.scope(f"experts.{expert}"):
            matrices = _expert_matrices(store, layer, expert)
            total = _if(b, flag, partial(_add_expert, x, column, matrices), total)
    return b.from_float32(total)


def _route(b: GraphBuilder, store: WeightStore, layer: Layer, block: Mixture, x: str) -> tuple[str, str]:
    """What experts are chosen by, and their weights, zero for those not chosen: float32 [T, n_experts]."""
    prefix = f"model.layers.{layer.index}.feed_forward"
    logits = matmul(b, x, store.add(f"{prefix}.gate", [layer.weights[Role.ROUTER]]), is_flat=True)
    ranked = scores = _scores(b, block.scoring, logits)
    bias = layer.weights.get(Role.EXPERT_BIAS)
    if bias is not None:
        ranked = b.op("Add", scores, store.add(bias.view.name, [bias], bias.shape).parts[0])
    _, experts = b.ops("TopK", ranked, b.ints(block.top_k), outputs=(None, None), axis=-1)
    top = b.op("GatherElements", scores, experts, axis=1)
    if block.is_normalised:
        total = b.op("ReduceSum", top, b.ints(1), keepdims=1)
        top = b.op("Div", top, b.op("Add", total, b.scalar(block.sum_eps)) if block.sum_eps else total)
    if block.scaling != 1:
        top = b.op("Mul", top, b.scalar(block.scaling))
    return ranked, b.op("ScatterElements", b.op("Mul", scores, b.scalar(0)), experts, top, axis=1)


def _scores(b: GraphBuilder, scoring: Scoring, logits: str) -> str:
    """The sigmoid is written out: the fused one has an absolute error that shows in small scores."""
    if scoring is Scoring.SOFTMAX:
        return b.op("Softmax", logits, axis=-1)
    one = b.scalar(1)
    return b.op("Div", one, b.op("Add", one, b.op("Exp", b.op("Neg", logits))))


def _expert_matrices(store: WeightStore, layer: Layer, expert: int) -> tuple[list[Matrix], Matrix]:
    prefix = f"model.layers.{layer.index}.feed_forward.experts.{expert}"
    gate, up, down = (
        _one_expert(layer.weights[role], expert) for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN)
    )
    groups = store.groups([gate, up])
    first = [store.add(f"{prefix}.gate_up_proj" if len(groups) == 1 else group[0].view.name, group) for group in groups]
    return first, store.add(f"{prefix}.down_proj", [down])


def _one_expert(weight: Weight, expert: int) -> Weight:
    """Expert e of a stack [E, out, in] as a matrix of its own."""
    _, n_rows, n_cols = weight.shape
    name = weight.view.name.replace(".experts.", f".experts.{expert}.").replace("{e}.", "")
    return Weight(weight.role, weight.layer, WindowTensor(name, weight.view, expert * n_rows, (n_rows, n_cols)))


def _add_expert(x: str, weights: str, matrices: tuple[Sequence[Matrix], Matrix], b: GraphBuilder, total: str) -> str:
    """total, with what the expert says of its tokens added to their rows; weights is [T, 1], zero for all others."""
    first, second = matrices
    tokens = b.op("Gather", b.op("NonZero", weights), b.constant(0, "<i8"), axis=0)
    rows = b.op("Gather", x, tokens, axis=0)
    halves = [matmul(b, rows, matrix, is_flat=True) for matrix in first]
    if len(halves) == 1:
        halves = list(b.ops("Split", halves[0], outputs=[None, None], axis=-1, num_outputs=2))
    down = b.to_float32(matmul(b, gated_silu(b, *halves), second, is_flat=True))
    scaled = b.op("Mul", down, b.op("Gather", weights, tokens, axis=0))
    return b.op("ScatterND", total, b.reshape(tokens, -1, 1), scaled, reduction="add")


def _if(b: GraphBuilder, condition: str, run: Callable[[GraphBuilder, str], str], total: str) -> str:
    """run(total) if the condition holds, else total as it is.

    Never one inside another: ONNX Runtime packs the weights of one level of branches, and decodes deeper ones anew at
    each step.
    """
    from onnx import TensorProto, helper

    def graph(branch: GraphBuilder, name: str, output: str) -> object:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(branch.nodes, name, [], [value])

    then, otherwise = b.branch(), b.branch()
    return b.op(
        "If",
        condition,
        then_branch=graph(then, "run", run(then, total)),
        else_branch=graph(otherwise, "skip", otherwise.op("Identity", total)),
    )
