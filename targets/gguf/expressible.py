"""What llama.cpp cannot say of a model: each such block by its name, in one refusal.

llama.cpp has one fixed graph an architecture. It loads a file that leaves out what the graph demands with an error at
best, and ignores much of what a file says beyond it.
Source: llama.cpp `src/models/` (a file an architecture), `src/llama-graph.cpp`, `build_moe_ffn`; of architectures whose
source was not at hand what b12211 loads and computes.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator

from ...graph.blocks import Attention, Branch, Branches, Dense, Mixture, ShortConv
from ...graph.config import ModelConfig
from ...graph.errors import UsageError
from ...graph.families.family import GgufNames
from ...graph.roles import Role
from ...graph.rotary import frequency_factors
from ...quantize.gguf_file.tensor_names import gguf_names


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raises: UsageError for what llama.cpp has no representation of, all of it together."""
    names = gguf_names(config.family)
    reasons: dict[str, list[int]] = {}
    for index, branches in enumerate(config.layers):
        for reason in _of_layer(branches, config.hidden_size, names):
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


def _of_layer(branches: Branches, hidden: int, names: GgufNames) -> Iterator[str]:
    for branch in branches:
        yield from _of_branch(branch, names)
        block = branch.block
        if isinstance(block, ShortConv):
            yield from _of_convolution(block, names)
        elif isinstance(block, Attention):
            yield from _of_attention(block, hidden, names)
        elif isinstance(block, Mixture):
            yield from _of_mixture(block, names)
        elif not isinstance(block, Dense):
            yield block.name
    if len({branch.post_norm is None for branch in branches}) > 1:
        yield "a norm after one block of a layer and none after the other, where it demands both or neither"


def _of_branch(branch: Branch, names: GgufNames) -> Iterator[str]:
    if branch.norm is None:
        yield f"{branch.block.name} without a norm before it"
    if branch.scale != 1:
        yield f"{branch.block.name} whose outcome is scaled by {branch.scale}"
    yield from _part("a norm after a block", branch.post_norm is not None, branch.post_norm_role, names)


def _of_convolution(block: ShortConv, names: GgufNames) -> Iterator[str]:
    yield from _part("biases of a short convolution (conv_bias)", block.is_biased, Role.CONV_KERNEL_BIAS, names)
    if not block.is_causal and not names.gives_vectors:
        yield "a short convolution that sees both ways"


def _of_attention(block: Attention, hidden: int, names: GgufNames) -> Iterator[str]:
    yield from _part("gated heads", block.is_gated, Role.ATTN_GATE, names)
    yield from _part("norms of queries and keys", block.qk_norm is not None, Role.Q_NORM, names)
    yield from _part("biases of attention", block.is_biased, Role.ATTN_Q_BIAS, names)
    if not block.is_causal and not names.gives_vectors:
        yield "attention that sees both ways"
    if block.window is not None and not names.has_windows:
        yield "sliding-window attention"
    if block.q_size != hidden and not names.has_free_heads:
        yield f"attention of {block.n_heads} heads of {block.head_dim} with hidden_size {hidden}"
    if block.rope is None:
        yield "attention without rotary positions"
    elif block.rope.factor != 1 or block.rope.pairs_neighbours:
        yield "rotary positions with a factor, or of neighbouring pairs"
    elif not (names.has_windows and block.window is None) and (frequency_factors(block.rope) != 1).any():
        yield "rotary positions of part of a head, or at other than the default frequencies"


def _of_mixture(block: Mixture, names: GgufNames) -> Iterator[str]:
    if Role.EXPERT_BIAS not in names.demands | names.takes:
        yield block.name
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
    for kind in (ShortConv, Attention):
        if not config.of_kind(kind):
            yield f"a model without any {kind.name}"
    if names.has_windows and all(block.window is None for block in attention.values()):
        yield "a model without any sliding-window attention, which it demands"
    for what, values in (
        ("numbers of heads", ((block.n_heads, block.head_dim) for block in attention.values())),
        ("windows", (block.window for block in attention.values() if block.window is not None)),
        ("ropes", (block.rope for block in attention.values() if block.window is None)),
        ("ropes of windows", (block.rope for block in attention.values() if block.window is not None)),
    ):
        if not _are_alike(values):
            yield f"attention with different {what} in its layers"
    if mixtures and list(mixtures) != list(range(len(config.of_kind(Dense)), config.n_layers)):
        yield "a dense feed-forward after a mixture of experts"
    if not _are_alike(mixer.is_causal for mixer in config.mixers):
        yield "some layers that see both ways, and others that do not"
    if config.vectors is None and not config.is_causal:
        yield "logits of a model that sees both ways"
    if config.vectors is not None and not names.gives_vectors:
        yield f"a {config.vectors.name}"
    if config.embedding_scale != 1 or config.logit_scale != 1:
        yield "a scaled embedding or scaled logits"


def _are_alike(values: Iterable[Hashable]) -> bool:
    return len(set(values)) <= 1
