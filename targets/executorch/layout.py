"""What a .pte stores of a model, and the size of the file, from a config alone and without torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from ...convert.model.config import ModelConfig
from ...convert.model.graph import BIASES, EXPERTS, NORMS, Role, Weight, WeightGraph
from ...convert.plans import Fallback, Placement, TensorPlan
from ...quantize.encoding import Part
from ...quantize.policy import Policy
from .fused import HEADER, is_tiled, operands

# The entry of named data that says which of the file's nameless constants is which tensor.
INDEX_KEY = "lfm-convert"
# Of the file that holds the weights if they are not in the program.
DATA_SUFFIX = ".ptd"
# What the module takes as float32 constants of its own; all else but the embedding belongs to a delegate.
VECTORS = NORMS | BIASES | {Role.CONV_KERNEL}
_CONSTANTS = VECTORS | {Role.EMBED}
# B, C and x of a short convolution; the two halves that a rotation pairs.
_CUTS = {Role.CONV_IN: 3, Role.CONV_IN_BIAS: 3, Role.Q_NORM: 2, Role.K_NORM: 2}
# What instructions, names and delegates take beside the data, measured on files of executorch 1.5.1.
_PROGRAM_BYTES = {
    "model": 9600,
    "conv": 7900,
    "attention": 10500,
    "dense": 5700,
    "moe": 6000,
    "expert": 4300,
    "fused": 6350,
}
# What the name of a piece of data takes where it is listed.
_NAME_BYTES = 115
# Parts start on multiples of this in the scratch file and, as segments, in the .pte.
ALIGNMENT = 128


def stored_weights(graph: WeightGraph) -> Iterator[Weight]:
    """Every weight as it is stored: a tied embedding a second time, as the head."""
    for weight in graph.weights():
        yield weight
        if weight.role is Role.EMBED and graph.is_tied:
            yield replace(weight, role=Role.LM_HEAD)


def place(graph: WeightGraph, policy: Policy, scratch: str) -> tuple[list[TensorPlan], list[Fallback], int]:
    """Tensors with their places in the scratch file, those that fell back, and the bytes of that file."""
    tensors, fallbacks, end = [], [], 0
    for weight in stored_weights(graph):
        name = tensor_name(weight.role, weight.layer)
        choice = policy.choose(weight)
        if choice.reason:
            fallbacks.append(Fallback(name, choice.wanted, choice.encoding.name, choice.reason))
        places = []
        for part in choice.encoding.parts(weight.view.n_cols):
            places.append(Placement(scratch, end))
            end += aligned(weight.view.n_rows * part.row_nbytes)
        tensors.append(
            TensorPlan(
                name=name,
                role=weight.role,
                layer=weight.layer,
                shape=weight.shape,
                encoding=choice.encoding,
                view=weight.view,
                placements=tuple(places),
            )
        )
    return tensors, fallbacks, end


def tensor_name(role: Role, layer: int | None) -> str:
    """`ffn_gate.3`: short, since a data key of 64 characters holds it with cut, part and half a hash."""
    return role.value if layer is None else f"{role.value}.{layer}"


def n_cuts(tensor: TensorPlan) -> int:
    """Into how many pieces the module takes a tensor: experts, or what one projection or norm is split in."""
    if tensor.role in EXPERTS:
        return tensor.shape[0]
    if tensor.role is Role.CONV_KERNEL:
        return tensor.shape[1]
    return _CUTS.get(tensor.role, 1) if tensor.role else 1


def parts_of(tensor: TensorPlan) -> tuple[Part, ...]:
    return tensor.encoding.parts(tensor.view.n_cols)


def part_sizes(tensor: TensorPlan) -> list[tuple[str, int]]:
    """Label and bytes of every part of every cut: what the file stores as one piece."""
    cuts = n_cuts(tensor)
    return [
        (f"{tensor.name}.{i}.{part.name}", tensor.view.n_rows * part.row_nbytes // cuts)
        for i in range(cuts)
        for part in parts_of(tensor)
    ]


def aligned(n_bytes: int) -> int:
    return -(-n_bytes // ALIGNMENT) * ALIGNMENT


def file_bytes(config: ModelConfig, tensors: Sequence[TensorPlan], *, is_split: bool = False) -> list[int]:
    """Bytes of the .pte, of .pte and .ptd if it is split, within 1 %: data exactly, the rest by `_PROGRAM_BYTES`."""
    fused = operands(tensors)
    fused_layers = {operand.tensors[0].layer for operand in fused}
    vectors = data = n_named = 0
    for tensor in tensors:
        is_constant = tensor.role in _CONSTANTS or is_tiled(tensor)
        for _, n_bytes in part_sizes(tensor):
            if tensor.role in VECTORS or (tensor.role is Role.ROUTER and tensor.layer in fused_layers):
                vectors += n_bytes
            else:
                data += n_bytes if is_constant else aligned(n_bytes)
                n_named += not is_constant
    data += sum(operand.n_experts * len(HEADER) for operand in fused)
    n_moe = sum(config.is_moe_layer(layer) for layer in range(config.n_layers)) - len(fused_layers)
    n_attention = len(config.attention_layers)
    counts = {
        "model": 1,
        "conv": config.n_layers - n_attention,
        "attention": n_attention,
        "dense": config.n_layers - n_moe - len(fused_layers),
        "moe": n_moe,
        "expert": n_moe * (config.moe.n_experts if config.moe else 0),
        "fused": len(fused_layers),
    }
    program = vectors + sum(count * _PROGRAM_BYTES[kind] for kind, count in counts.items())
    if not is_split:
        return [program + data]
    return [program - n_named * _NAME_BYTES, data + n_named * _NAME_BYTES]
