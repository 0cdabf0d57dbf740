"""What llama.cpp cannot say of a model: each such block by its name, in one refusal.

llama.cpp has one fixed graph an architecture. It loads a file that leaves out what the graph demands with an error at
best, and ignores much of what a file says beyond it.
Source: llama.cpp `src/models/` (a file an architecture), `src/llama-graph.cpp`, `build_moe_ffn`; of architectures whose
source was not at hand what b12211 loads and computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator
from math import isclose

from ...graph.blocks import Attention, Branch, Branches, Dense, Mixture, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.families.family import GgufNames
from ...graph.roles import Role
from ...quantize.gguf_file.tensor_names import gguf_names
from .ropes import is_default, said_rope

# Numbers that are the same in float32.
_AS_FLOAT32 = 1e-7
_LEADING_DENSE = frozenset({"leading_dense_block_count"})


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raises: UsageError for what llama.cpp has no representation of, all of it together."""
    names = gguf_names(config.family)
    reasons: dict[str, list[int]] = {}
    for index, branches in enumerate(config.layers):
        for reason in _of_layer(branches, config, names, index):
            reasons.setdefault(reason, []).append(index)
    found = [f"{reason} ({_layers(where)})" for reason, where in reasons.items()] + [*_of_model(config, names)]
    if found:
        raise UsageError(
            f"llama.cpp has no representation of {'; '.join(found)} in a model of its architecture "
            f"'{names.architecture}': choose another target"
        )


def any_attention(config: ModelConfig, *, is_sliding: bool = False) -> Attention:
    """The attention of layers that see a window, or of those that see every position; if there is none, any.

    Raises: UsageError for a model without attention.
    """
    found = sorted(config.of_kind(Attention).values(), key=lambda block: (block.window is not None) is not is_sliding)
    if not found:
        raise UsageError("llama.cpp has no representation of a model without any attention: choose another target")
    return found[0]


def _layers(indices: list[int]) -> str:
    return f"layer{'s' if len(indices) > 1 else ''} {', '.join(map(str, indices))}"


def _of_layer(branches: Branches, config: ModelConfig, names: GgufNames, layer: int) -> Iterator[str]:
    for branch in branches:
        yield from _of_branch(branch, names)
        block = branch.block
        if isinstance(block, ShortConv):
            yield from _of_convolution(block, names)
        elif isinstance(block, Attention):
            yield from _of_attention(block, config, names)
            yield from _of_rope(block, config, names, layer)
        elif isinstance(block, Mixture):
            yield from _of_mixture(block, names)
        elif isinstance(block, Dense):
            yield from _of_dense(block, names)
        else:
            yield block.name
    if len({branch.post_norm is None for branch in branches}) > 1:
        yield "a norm after one block of a layer and none after the other, where it demands both or neither"


def _of_branch(branch: Branch, names: GgufNames) -> Iterator[str]:
    if branch.norm is None:
        yield f"{branch.block.name} without a norm before it"
    if branch.scale != 1 and not names.has_scales:
        yield f"{branch.block.name} whose outcome is scaled by {branch.scale}"
    yield from _part("a norm after a block", branch.post_norm is not None, branch.post_norm_role, names)


def _of_convolution(block: ShortConv, names: GgufNames) -> Iterator[str]:
    if not names.has_convolutions:
        yield block.name
    yield from _part("biases of a short convolution (conv_bias)", block.is_biased, Role.CONV_KERNEL_BIAS, names)
    if not block.is_causal and not names.gives_vectors:
        yield "a short convolution that sees both ways"


def _of_attention(block: Attention, config: ModelConfig, names: GgufNames) -> Iterator[str]:
    yield from _part("gated heads", block.is_gated, Role.ATTN_GATE, names)
    yield from _part("norms of queries and keys", block.qk_norm is not None, Role.Q_NORM, names)
    yield from _part("biases of attention", block.is_biased, Role.ATTN_Q_BIAS, names)
    if not block.is_causal and not names.gives_vectors:
        yield "attention that sees both ways"
    if block.window is not None and not names.has_windows:
        yield "sliding-window attention"
    if block.q_size != config.hidden_size and not names.has_free_heads:
        yield f"attention of {block.n_heads} heads of {block.head_dim} with hidden_size {config.hidden_size}"
    scale = block.head_dim**-0.5 if names.score_scale is None else names.score_scale(config, block)
    if not names.has_scales and not isclose(block.scale, scale, rel_tol=_AS_FLOAT32):
        yield f"attention whose scores are multiplied with {block.scale:g}, where it does with {scale:g}"


def _of_rope(block: Attention, config: ModelConfig, names: GgufNames, layer: int) -> Iterator[str]:
    rope = block.rope
    if rope is None:
        if names.turns(layer) and not names.may_stand:
            yield "attention without rotary positions"
    elif not names.turns(layer):
        yield "attention with rotary positions, where it has none"
    elif rope.n_dims != block.head_dim and not names.has_partial_ropes:
        yield "rotary positions of part of a head"
    elif block.window is not None and names.has_windows:
        if not is_default(rope) or rope.pairs_neighbours:
            yield "rotary positions of part of a head, or at other than the default frequencies"
    elif said_rope(config, rope) is None:
        yield (
            "rotary positions of part of a head, of neighbouring pairs, with a factor, or at other than the default "
            "frequencies"
        )


def _of_dense(block: Dense, names: GgufNames) -> Iterator[str]:
    if block.activation is not names.activation:
        yield f"{block.name} with the activation {block.activation.value}, where it has {names.activation.value}"
    if names.scoring is not None and not _LEADING_DENSE.intersection(names.keys):
        yield block.name


def _of_mixture(block: Mixture, names: GgufNames) -> Iterator[str]:
    if names.scoring is None:
        yield block.name
    elif block.scoring is not names.scoring:
        yield f"{block.name} scored by a {block.scoring.value}, where it has a {names.scoring.value}"
    if block.has_bias and Role.EXPERT_BIAS not in names.demands | names.takes:
        yield "biases of experts"
    if block.scaling != 1 and not _LEADING_DENSE.intersection(names.keys):
        yield "experts whose weights are scaled"
    if not block.is_normalised:
        yield "a mixture of experts without norm_topk_prob: it always divides the weights of the chosen by their sum"


def _part(what: str, is_there: bool, role: Role, names: GgufNames) -> Iterator[str]:
    """Of what a block may have or lack: whether the graph of the architecture has it."""
    if is_there and role not in names.demands | names.takes:
        yield what
    if not is_there and role in names.demands:
        yield f"a block without {what}, which it demands"


def _of_model(config: ModelConfig, names: GgufNames) -> Iterator[str]:
    attention, mixtures = config.of_kind(Attention), config.of_kind(Mixture)
    for kind in (ShortConv, Attention) if names.has_convolutions else (Attention,):
        if not config.of_kind(kind):
            yield f"a model without any {kind.name}"
    if names.has_windows and all(block.window is None for block in attention.values()):
        yield "a model without any sliding-window attention, which it demands"
    for what, values in (
        ("numbers of heads", ((block.n_heads, block.head_dim) for block in attention.values())),
        ("windows", (block.window for block in attention.values() if block.window is not None)),
        ("ropes", (block.rope for layer, block in attention.items() if block.window is None and names.turns(layer))),
        ("ropes of windows", (block.rope for block in attention.values() if block.window is not None)),
        ("scales", (block.scale for block in attention.values())),
    ):
        if not _are_alike(values):
            yield f"attention with different {what} in its layers"
    if not _are_alike(branch.scale for branch in config.branches):
        yield "branches with different scales"
    if mixtures and list(mixtures) != list(range(len(config.of_kind(Dense)), config.n_layers)):
        yield "a dense feed-forward after a mixture of experts"
    if not names.has_scales:
        if not isclose(config.embedding_scale, names.embedding_scale(config), rel_tol=_AS_FLOAT32):
            yield f"a scaled embedding, by {config.embedding_scale:g}, where it does by {names.embedding_scale(config):g}"
        if config.logit_scale != 1:
            yield f"scaled logits, by {config.logit_scale:g}"
    if not _are_alike(mixer.is_causal for mixer in config.mixers):
        yield "some layers that see both ways, and others that do not"
    if config.vectors is None and not config.is_causal:
        yield "logits of a model that sees both ways"
    if config.vectors is not None and not names.gives_vectors:
        yield f"a {config.vectors.name}"


def _are_alike(values: Iterable[Hashable]) -> bool:
    return len(set(values)) <= 1
