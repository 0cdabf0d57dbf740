"""Feed-forward layers: dense SwiGLU, and mixture of experts unrolled into conditionals."""

from __future__ import annotations

from collections.abc import Sequence

from ...convert.model.config import ModelConfig, MoEConfig
from ...convert.model.graph import Layer, Role, Weight
from ...convert.model.tensor import WindowTensor
from .builder import GraphBuilder
from .fused import fused_experts
from .linear import linear, matmul
from .store import Matrix, WeightStore

_GATE_UP = (Role.FFN_GATE, Role.FFN_UP)


def dense(b: GraphBuilder, store: WeightStore, layer: Layer, x: str) -> str:
    """w2(silu(w1 x) * w3 x)."""
    prefix = f"model.layers.{layer.index}.feed_forward"
    weights, down = [layer.weights[role] for role in _GATE_UP], layer.weights[Role.FFN_DOWN]
    gate, up = linear(b, store, x, f"{prefix}.gate_up_proj", weights)
    (out,) = linear(b, store, _swiglu(b, gate, up), f"{prefix}.down_proj", [down])
    return out


def _swiglu(b: GraphBuilder, gate: str, up: str) -> str:
    return b.op("Mul", b.op("Mul", gate, b.op("Sigmoid", gate)), up)


def mixture(b: GraphBuilder, store: WeightStore, config: ModelConfig, layer: Layer, x: str, *, fused: bool) -> str:
    """Weighted sum [T, H] of the chosen experts of x [T, H]; an expert that no token chose is skipped whole.

    One `If` an expert: inside, its tokens are gathered, run through it and added to the sum in float32.
    This form reads only chosen experts, and runs on every ONNX Runtime; `fused` is one QMoE node instead.
    """
    moe = config.moe
    if moe is None:
        raise ValueError("a dense config has no expert layers")
    with b.scope("router"):
        ranks, weights, chosen = _route(b, store, layer, moe, b.to_float32(x))
    if fused:
        return fused_experts(b, store, layer, moe, x, ranks, weights)
    with b.scope("router"):
        used = b.op("ReduceMax", chosen, b.ints(0), keepdims=0)
    total = b.op("Mul", b.to_float32(x), b.scalar(0))
    for expert in range(moe.n_experts):
        with b.scope(f"experts.{expert}"):
            matrices = _expert_matrices(store, layer, moe, expert)
            index = b.constant(expert, "<i8")
            is_used = b.op("Greater", b.op("Gather", used, index, axis=0), b.scalar(0))
            total = _expert_if(b, is_used, total, x, weights, chosen, index, matrices)
    return b.from_float32(total)


def _route(b: GraphBuilder, store: WeightStore, layer: Layer, moe: MoEConfig, x: str) -> tuple[str, str, str]:
    """What experts are chosen by, weights, and 1 for the chosen ones: float32 [T, n_experts], the last two else zero.

    The sigmoid is written out: the fused one has an absolute error that shows in small scores.
    """
    prefix = f"model.layers.{layer.index}.feed_forward"
    logits = matmul(b, x, store.add(f"{prefix}.gate", [layer.weights[Role.ROUTER]]))
    one = b.scalar(1)
    scores = b.op("Div", one, b.op("Add", one, b.op("Exp", b.op("Neg", logits))))
    ranked = scores
    bias = layer.weights.get(Role.EXPERT_BIAS)
    if bias is not None:
        ranked = b.op("Add", scores, store.add(bias.view.name, [bias], bias.shape).parts[0])
    _, experts = b.ops("TopK", ranked, b.ints(moe.top_k), outputs=(None, None), axis=-1)
    top = b.op("GatherElements", scores, experts, axis=1)
    if moe.norm_topk_prob:
        total = b.op("ReduceSum", top, b.ints(1), keepdims=1)
        top = b.op("Div", top, b.op("Add", total, b.scalar(1e-6)))
    if moe.routed_scaling_factor != 1:
        top = b.op("Mul", top, b.scalar(moe.routed_scaling_factor))
    nothing = b.op("Mul", scores, b.scalar(0))
    ones = b.op("Add", b.op("Mul", top, b.scalar(0)), one)
    weights, chosen = (b.op("ScatterElements", nothing, experts, v, axis=1) for v in (top, ones))
    return ranked, weights, chosen


def _expert_matrices(store: WeightStore, layer: Layer, moe: MoEConfig, expert: int) -> tuple[list[Matrix], Matrix]:
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


def _expert_if(
    b: GraphBuilder,
    is_used: str,
    total: str,
    x: str,
    weights: str,
    chosen: str,
    expert: str,
    matrices: tuple[Sequence[Matrix], Matrix],
) -> str:
    from onnx import TensorProto, helper

    first, second = matrices
    then, otherwise = b.branch(), b.branch()
    tokens = then.reshape(then.op("NonZero", then.op("Gather", chosen, expert, axis=1)), -1)
    rows = then.op("Gather", x, tokens, axis=0)
    halves = [matmul(then, rows, matrix) for matrix in first]
    if len(halves) == 1:
        halves = list(then.ops("Split", halves[0], outputs=[None, None], axis=-1, num_outputs=2))
    down = then.to_float32(matmul(then, _swiglu(then, *halves), second))
    share = then.op("Gather", then.op("Gather", weights, expert, axis=1), tokens, axis=0)
    column = then.ints(1)
    scaled = then.op("Mul", down, then.op("Unsqueeze", share, column))
    added = then.op("ScatterND", total, then.op("Unsqueeze", tokens, column), scaled, reduction="add")
    kept = otherwise.op("Identity", total)

    def graph(branch: GraphBuilder, name: str, output: str) -> object:
        value = helper.make_tensor_value_info(output, TensorProto.FLOAT, None)
        return helper.make_graph(branch.nodes, name, [], [value])

    return b.op("If", is_used, then_branch=graph(then, "expert", added), else_branch=graph(otherwise, "skip", kept))
