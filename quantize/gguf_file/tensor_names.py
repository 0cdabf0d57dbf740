"""What GGUF calls each weight of a model.

Names follow from roles. A family whose architecture llama.cpp calls otherwise somewhere says so in its own file.
Source: llama.cpp `gguf-py/gguf/constants.py`, `TENSOR_NAMES`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from ...graph.families import FAMILIES
from ...graph.families.family import Family, GgufNames
from ...graph.roles import Address, Role

_NAMES: Mapping[Role, str] = {
    Role.EMBED: "token_embd.weight",
    Role.FINAL_NORM: "output_norm.weight",
    Role.LM_HEAD: "output.weight",
    Role.PROJECTION: "dense_2.weight",
    Role.OPERATOR_NORM: "attn_norm.weight",
    Role.POST_OPERATOR_NORM: "post_attention_norm.weight",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.POST_FFN_NORM: "post_ffw_norm.weight",
    Role.CONV_IN: "shortconv.in_proj.weight",
    Role.CONV_IN_BIAS: "shortconv.in_proj.bias",
    Role.CONV_KERNEL: "shortconv.conv.weight",
    Role.CONV_KERNEL_BIAS: "shortconv.conv.bias",
    Role.CONV_OUT: "shortconv.out_proj.weight",
    Role.CONV_OUT_BIAS: "shortconv.out_proj.bias",
    Role.ATTN_Q: "attn_q.weight",
    Role.ATTN_K: "attn_k.weight",
    Role.ATTN_V: "attn_v.weight",
    Role.ATTN_OUT: "attn_output.weight",
    Role.ATTN_Q_BIAS: "attn_q.bias",
    Role.ATTN_K_BIAS: "attn_k.bias",
    Role.ATTN_V_BIAS: "attn_v.bias",
    Role.ATTN_OUT_BIAS: "attn_output.bias",
    Role.ATTN_GATE: "attn_gate.weight",
    Role.Q_NORM: "attn_q_norm.weight",
    Role.K_NORM: "attn_k_norm.weight",
    Role.FFN_GATE: "ffn_gate.weight",
    Role.FFN_UP: "ffn_up.weight",
    Role.FFN_DOWN: "ffn_down.weight",
    Role.ROUTER: "ffn_gate_inp.weight",
    Role.EXPERT_BIAS: "exp_probs_b.bias",
    Role.EXPERT_GATE: "ffn_gate_exps.weight",
    Role.EXPERT_UP: "ffn_up_exps.weight",
    Role.EXPERT_DOWN: "ffn_down_exps.weight",
}
# What the default table of a rope is divided by; of sequences longer than the trained, and of others.
ROPE_FACTORS = "rope_freqs.weight"
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"
CONSTANTS = frozenset({ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS})
_TOP = frozenset({Role.EMBED, Role.FINAL_NORM, Role.LM_HEAD, Role.PROJECTION})
_LAYER_NAME = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)")


def gguf_names(family: Family) -> GgufNames:
    """What llama.cpp calls a family. Raises: UsageError if it has no architecture for it."""
    if family.gguf is None:
        raise family.refuse_for("llama.cpp")
    return family.gguf


def families_of(architecture: object) -> tuple[Family, ...]:
    """The families that llama.cpp calls so, whose graphs and tensors are the same there."""
    return tuple(family for family in FAMILIES if family.gguf and family.gguf.architecture == architecture)


def family_of(architecture: object) -> Family | None:
    """The first of them; None if there is none."""
    return next(iter(families_of(architecture)), None)


def tensor_name(address: Address, family: Family | None = None) -> str:
    """`blk.3.attn_q.weight`; of no family the name that follows from the role."""
    role, layer = address
    name = _names(family)[role]
    return name if layer is None else f"blk.{layer}.{name}"


def tensor_address(name: str, family: Family) -> Address | None:
    """Inverse of `tensor_name`; None for a name that is not a weight's. Of a tensor of several weights the first."""
    return next(iter(tensor_addresses(name, family)), None)


def tensor_addresses(name: str, family: Family) -> tuple[Address, ...]:
    """The weights whose rows a tensor of this name holds, in their order; none of a name that is no weight's."""
    match = _LAYER_NAME.fullmatch(name)
    layer, wanted = (int(match[1]), match[2]) if match else (None, name)
    roles = (role for role, known in _names(family).items() if known == wanted)
    return tuple((role, layer) for role in roles if (role in _TOP) is (layer is None))


def held_together(role: Role, family: Family) -> tuple[Role, ...]:
    """The weights of a layer that are one tensor of a file with this one, in the order of their rows."""
    names = _names(family)
    return tuple(other for other, name in names.items() if name == names[role])


def _names(family: Family | None) -> Mapping[Role, str]:
    return _NAMES if family is None or family.gguf is None else {**_NAMES, **family.gguf.tensors}
