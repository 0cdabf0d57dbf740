"""Experts as operands of `llama::quantized_moe_ffn`, in place of a delegate each: encodings, sizes and places.

An operand is a tensor uint8 [E, bytes]; each expert's run is a header of 64 bytes and the tiles of its matrices, gate
before up. The operator maps them from the file. Source: executorch `extension/llm/custom_ops/op_moe.cpp`, torchao
`shared_kernels/internal/packed_weights_header.h`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from struct import pack

from ...graph.blocks import Mixture, Scoring
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS, Role
from ...quantize.encoding import get_encoding
from ...quantize.policy import Policy, Rule
from ..plans import TensorPlan

# `--et-moe`: a delegate an expert, or the operator. The first is the default.
MOE_FORMS = ("experts", "moe_ffn")
OPERATOR = "llama::quantized_moe_ffn"
MINIMUM_RUNTIME = "1.5"
# The encoding of experts in either form.
_TILES = {f"et_int4_g{block}": f"et_tiles4_g{block}" for block in (32, 64, 128)}
# Magic, type "8-bit activations, x-bit weights, universal", bits, no zero points, no bias, rows, columns and halves
# of a block; the rest is zero.
HEADER = pack("<16i", 6712, 1, 4, 0, 0, 8, 16, 2, *[0] * 8)
_OPERANDS = {"experts_in": (Role.EXPERT_GATE, Role.EXPERT_UP), "experts_out": (Role.EXPERT_DOWN,)}


@dataclass(frozen=True)
class Operand:
    """One operand of a layer. Units: bytes."""

    label: str
    tensors: tuple[TensorPlan, ...]

    @property
    def n_experts(self) -> int:
        return self.tensors[0].shape[0]

    @property
    def expert_nbytes(self) -> int:
        return len(HEADER) + sum(tensor.nbytes for tensor in self.tensors) // self.n_experts

    @property
    def nbytes(self) -> int:
        return self.n_experts * self.expert_nbytes

    def places(self) -> Iterator[tuple[TensorPlan, int, int, int]]:
        """Tensor, expert, offset in the operand and bytes of every run of tiles."""
        for expert in range(self.n_experts):
            offset = expert * self.expert_nbytes + len(HEADER)
            for tensor in self.tensors:
                n_bytes = tensor.nbytes // self.n_experts
                yield tensor, expert, offset, n_bytes
                offset += n_bytes


def operands(tensors: Sequence[TensorPlan]) -> list[Operand]:
    """The operands of every layer whose experts are tiles."""
    found = {(tensor.role, tensor.layer): tensor for tensor in tensors if is_tiled(tensor)}
    layers = sorted({layer for _, layer in found if layer is not None})
    return [
        Operand(f"{name}.{layer}", tuple(found[role, layer] for role in roles))
        for layer in layers
        for name, roles in _OPERANDS.items()
    ]


def has_factor(block: Mixture) -> bool:
    """Whether a block does more or less than divide the chosen scores by their sum, which is all the operator does."""
    return not block.is_normalised or block.sum_eps != 0


def is_tiled(tensor: TensorPlan) -> bool:
    return tensor.encoding.tile_rows > 1


def moe_policy(policy: Policy, form: str, graph: WeightGraph) -> Policy:
    """The policy with the experts as the form wants them.

    Raises: UsageError for an unknown form, and for experts that the operator does not take.
    """
    if form == MOE_FORMS[0]:
        return policy
    mixtures = graph.config.of_kind(Mixture).values()
    if not mixtures:
        raise UsageError("--et-moe moe_ffn: a dense model has no experts")
    if any(block.has_bias and block.scoring is Scoring.SOFTMAX for block in mixtures):
        raise UsageError(f"--et-moe moe_ffn: {OPERATOR} takes no bias of experts whose scores are by softmax")
    used = {policy.choose(weight).encoding.name for weight in graph.weights() if weight.role in EXPERTS}
    tiles = get_encoding(_TILES[next(iter(used))]) if len(used) == 1 and used <= set(_TILES) else None
    sizes = graph.config.hidden_size, *dict.fromkeys(block.size for block in mixtures)
    if tiles is None or any(size % tiles.tile_rows for size in sizes):
        raise UsageError(
            f"--et-moe moe_ffn: {OPERATOR} takes experts of 4 bits in groups of one size, by 8 rows at a time; "
            f"{policy.name} stores these, of {' and '.join(map(str, sizes))} columns, as {', '.join(sorted(used))}"
        )
    return replace(policy, rules=(Rule(tiles.name, EXPERTS), *policy.rules))
