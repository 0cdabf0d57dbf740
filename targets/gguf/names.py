"""What GGUF calls each weight of an LFM2 model, and in which order files hold them.

Source: llama.cpp `gguf-py/gguf/constants.py`, `conversion/lfm2.py`, `src/llama-model-loader.h`.
"""

from __future__ import annotations

import re

from ...convert.model.graph import Role
from ..target import Address

# In the order in which the converter meets the weights: by checkpoint name (`lm_head.weight`,
# `model.embed_tokens.weight`, …; in a layer `conv.conv.weight`, `conv.in_proj.weight`, …).
_TOP = {
    Role.LM_HEAD: "output.weight",
    Role.EMBED: "token_embd.weight",
    Role.FINAL_NORM: "token_embd_norm.weight",  # a name llama.cpp keeps for old files: it is the final norm
}
_LAYER = {
    Role.CONV_KERNEL: "shortconv.conv.weight",
    Role.CONV_IN: "shortconv.in_proj.weight",
    Role.CONV_OUT: "shortconv.out_proj.weight",
    Role.EXPERT_BIAS: "exp_probs_b.bias",
    Role.EXPERT_GATE: "ffn_gate_exps.weight",
    Role.EXPERT_DOWN: "ffn_down_exps.weight",
    Role.EXPERT_UP: "ffn_up_exps.weight",
    Role.ROUTER: "ffn_gate_inp.weight",
    Role.FFN_GATE: "ffn_gate.weight",
    Role.FFN_DOWN: "ffn_down.weight",
    Role.FFN_UP: "ffn_up.weight",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.OPERATOR_NORM: "attn_norm.weight",
    Role.K_NORM: "attn_k_norm.weight",
    Role.ATTN_K: "attn_k.weight",
    Role.ATTN_OUT: "attn_output.weight",
    Role.Q_NORM: "attn_q_norm.weight",
    Role.ATTN_Q: "attn_q.weight",
    Role.ATTN_V: "attn_v.weight",
}
_TOP_ROLES = {name: role for role, name in _TOP.items()}
_LAYER_ROLES = {name: role for role, name in _LAYER.items()}
_RANK = {role: rank for rank, role in enumerate((*_TOP, *_LAYER))}
_LAYER_NAME = re.compile(r"blk\.(0|[1-9]\d{0,3})\.(.+)")


def tensor_name(address: Address) -> str:
    """`blk.3.attn_q.weight`."""
    role, layer = address
    return _TOP[role] if layer is None else f"blk.{layer}.{_LAYER[role]}"


def tensor_address(name: str) -> Address | None:
    """Inverse of `tensor_name`; None for a name that is not an LFM2 weight's."""
    match = _LAYER_NAME.fullmatch(name)
    if match is None:
        role = _TOP_ROLES.get(name)
        return (role, None) if role else None
    role = _LAYER_ROLES.get(match[2])
    return (role, int(match[1])) if role else None


def converter_order(address: Address) -> tuple[str, int]:
    """Sort key of `convert_hf_to_gguf.py` for a checkpoint of one file: names as text, so layer 10 before 2."""
    role, layer = address
    return ("" if layer is None else f"{layer}.", _RANK[role])


def quantizer_order(address: Address) -> tuple[int, str]:
    """Sort key of `llama-quantize`: layers by number, names as text within one."""
    return (-1 if address[1] is None else address[1], tensor_name(address))
