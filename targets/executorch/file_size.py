"""How large a .pte is, from a config alone and without torch.

Data is counted to the byte. The program around it is counted in pieces: one more of a piece adds the same to any
model's file, whatever its widths and its context. `benchmarks/executorch_pieces.py` measures them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ...graph.blocks import Activation, Attention, Block, Branch, Dense, Mixture, ShortConv
from ...graph.config import ModelConfig
from ...graph.roles import Role
from ..plans import TensorPlan
from .fused import has_factor, is_tiled, operands
from .layout import VECTORS, aligned, head_regions, held_window, n_cuts, part_sizes, parts_of

# Bytes of values, instructions, delegates and entries of the index, in files of executorch 1.5.1.
PIECES = {
    "model": 7620,
    # cosines and sines of one rope; masks and rows of one window; what scales the stream, its start or its end
    "rope": 1000, "window": 9470, "scale": 160,
    "conv": 5370, "tap": 730,
    "attention": 5400, "head_norms": 1780, "rotation": 1080, "rest": 270, "windowed": 3250, "gate": 800,
    "dense": 2950, "gelu": 640, "moe": 4120, "expert": 2920, "fused": 2580, "factor": 1600,
    "bias": 310, "post_norm": 780,
    # a name under which data is found; a quantized matrix beside a float one
    "name": 121, "quantized": 210,
    # held once for all layers of the same sizes: delegates without weights, operators that only convolutions call
    "rotate": 3710, "norm_heads": 2430, "turn": 2180, "turn_part": 2660, "gates": 510, "add_normed": 1020, "convs": 880,
}  # fmt: skip


def file_bytes(
    config: ModelConfig, tensors: Sequence[TensorPlan], *, context: int, is_split: bool = False
) -> list[int]:
    """Bytes of the .pte, of .pte and .ptd if it is split, within 1 %. `context` decides which windows are rings."""
    fused = operands(tensors)
    fused_layers = {operand.tensors[0].layer for operand in fused}
    program, data = 0, sum(aligned(operand.nbytes) for operand in fused)
    n_names = len(fused) if is_split else 0
    held: set[object] = set()
    for tensor in (each for each in tensors if not is_tiled(each)):
        sizes = [n_bytes for _, n_bytes in part_sizes(tensor)]
        if tensor.role in VECTORS or (tensor.role is Role.ROUTER and tensor.layer in fused_layers):
            program += sum(sizes)
            continue
        is_table = tensor.role is Role.EMBED
        if is_split or not is_table:
            n_names += len(sizes)
        if not is_table and len(parts_of(tensor)) > 1:
            program += n_cuts(tensor) * PIECES["quantized"]
        content = id(tensor.view), parts_of(tensor)
        if not is_split or content not in held:  # a .ptd holds equal data once: the token table that is the head's, too
            data += sum(map(aligned, sizes))
        held.add(content)
    data += n_names * PIECES["name"]
    program += sum(PIECES[piece] * n for piece, n in _pieces(config, fused_layers, context))
    return [program, data] if is_split else [program + data]


def _pieces(config: ModelConfig, fused_layers: set[int | None], context: int) -> Iterator[tuple[str, int]]:
    """How many of each piece a model has, the matrices' own left out."""
    attention = config.of_kind(Attention).values()
    branches = [(layer, branch) for layer, branches in enumerate(config.layers) for branch in branches]
    yield "model", 1
    yield "rope", len(config.ropes)
    yield "window", len({held_window(block, context) for block in attention} - {None})
    yield "scale", (config.embedding_scale != 1) + (config.logit_scale != 1)
    for layer, branch in branches:
        yield from _of_block(branch.block, context, is_fused=layer in fused_layers)
        yield "post_norm", branch.post_norm is not None
        yield "scale", branch.scale != 1
    for piece, _ in {shared for _, branch in branches for shared in _shared(branch)}:
        yield piece, 1


def _of_block(block: Block, context: int, *, is_fused: bool) -> Iterator[tuple[str, int]]:
    match block:
        case ShortConv():
            yield from (("conv", 1), ("tap", block.width), ("bias", 5 * block.is_biased))
        case Attention():
            yield from (("attention", 1), ("windowed", held_window(block, context) is not None))
            yield from (("head_norms", block.qk_norm is not None), ("rotation", len(head_regions(block))))
            yield "rest", sum(region.has_rest for region in head_regions(block))
            yield from (("gate", block.is_gated), ("bias", 4 * block.is_biased))
        case Mixture():
            yield "bias", block.has_bias
            yield from (
                [("fused", 1), ("factor", has_factor(block))] if is_fused else [("moe", 1), ("expert", block.n_experts)]
            )
        case Dense():
            yield from (("dense", 1), ("gelu", block.activation is Activation.GELU_TANH))


def _shared(branch: Branch) -> Iterator[tuple[str, tuple[int, ...]]]:
    """What a branch has in common with others of the same kind, and the sizes in which they must agree for it."""
    block = branch.block
    if branch.post_norm:
        yield "add_normed", ()
    if isinstance(block, ShortConv):
        yield "convs", ()
    if isinstance(block, Attention):
        heads = block.n_heads, block.n_kv_heads, block.head_dim
        yield from ((region.name, heads) for region in head_regions(block))
        if block.is_gated:
            yield "gates", (block.n_heads, block.head_dim)
