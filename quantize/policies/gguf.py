"""Quants of the GGUF target, with llama-quantize's meaning (no importance matrix, not `--pure`).

What decides the head decides a tied embedding too: the target asks for a tied embedding as LM_HEAD.
Source: llama.cpp `src/llama-quant.cpp`, `tensor_allows_quantization`, `llama_tensor_get_type_impl`,
`tensor_type_fallback`; `conversion/base.py`, `prepare_tensors`.
"""

from __future__ import annotations

from ...convert.model.graph import BIASES, NORMS, Role
from ..policy import Policy, Rule

# Never narrowed: the runtime's kernels for these want float32.
_ALWAYS_F32 = Rule("F32", NORMS | BIASES | {Role.CONV_KERNEL, Role.ROUTER})
_FALLBACKS = {"Q6_K": "Q8_0", "Q8_0": "F16", "Q5_1": "F16", "Q5_0": "F16", "Q4_1": "F16", "Q4_0": "F16"}


def _plain(name: str, class_name: str, *rules: Rule) -> Policy:
    """All matrices in the encoding the quant is named after, but for those `rules` name."""
    return Policy(name=name, class_name=class_name, rules=(_ALWAYS_F32, *rules, Rule(name)), fallbacks=_FALLBACKS)


_Q6_HEAD = Rule("Q6_K", frozenset({Role.LM_HEAD}))

POLICIES: tuple[Policy, ...] = (
    _plain("F32", "f32"),
    _plain("F16", "f16"),
    _plain("BF16", "f16"),
    _plain("Q8_0", "q8"),
    _plain("Q5_1", "q5", _Q6_HEAD),
    _plain("Q5_0", "q5", _Q6_HEAD),
    _plain("Q4_1", "q4", _Q6_HEAD),
    _plain("Q4_0", "q4", _Q6_HEAD),
)
