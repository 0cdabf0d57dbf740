"""Quants of the compressed-tensors target: llm-compressor's presets, by the names that it and vLLM give them.

| word                           | weights                                               | activations             |
|--------------------------------|-------------------------------------------------------|-------------------------|
| `W4A16`, `W8A16`               | integers in groups of 128                             | as they are             |
| `-g32`, `-g64` after these     | elements a group has                                  |                         |
| `-asym` after `W4A16` and that | with zero points: the preset `W4A16_ASYM`             |                         |
| `W8A8`                         | 8-bit integers, a scale a row                         | 8 bits, a token at once |
| `FP8`                          | E4M3, a scale a row: the preset `FP8_DYNAMIC`         | E4M3, a token at once   |
| `FP8_BLOCK`                    | E4M3, a scale for 128 rows and columns                | E4M3, 128 at once       |
| `NVFP4A16`                     | E2M1 in groups of 16, and a scale for the matrix      | as they are             |
| `MXFP4A16`, `MXFP4`            | E2M1 in groups of 32                                  | as they are; E2M1       |

Embedding, head, router, norms, biases and conv kernels stay as they are. Rows that a group does not divide have smaller
groups, then stay, too; what servers run as one product or one mixture is stored alike.
Source: compressed-tensors `quantization/quant_scheme.py`, `PRESET_SCHEMES`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ...graph.dtypes import DType
from ...graph.errors import UsageError
from ...graph.roles import EXPERTS, Trait, of_trait
from ..policy import PRODUCTS, Policy, Rule

GRAMMAR = (
    "W4A16 or W8A16, each also with -g32, -g64 or -g128 for the size of a group, W4A16 then also with -asym; W8A8, FP8, "
    "FP8_BLOCK, NVFP4A16, MXFP4 or MXFP4A16"
)
_INTEGERS = re.compile(r"w(?P<bits>[48])a16(?:-g(?P<group>32|64|128))?(?P<asym>-asym)?")
_GROUP = 128
# The others: the encoding without its float type, the gates' class, and what kernels round to.
_FIXED = {
    "w8a8": ("ct_int8", "q8", "int8"),
    "fp8": ("ct_fp8", "q5", "float8"),
    "fp8_block": ("ct_fp8_block", "q5", "float8"),
    "nvfp4": ("ct_nvfp4", "q4", "float4"),
    "nvfp4a16": ("ct_nvfp4", "q4", "float16"),  # weights are decoded to bfloat16, and so not whole
    "mxfp4": ("ct_mxfp4", "q4", "float4"),
    "mxfp4a16": ("ct_mxfp4", "q4", "float32"),
}
_CALIBRATED = "NVFP4"
_QUANTISED = of_trait(Trait.MATRIX, Trait.EXPERTS)
# What they take to be stored alike: such a product, and all that experts are made of.
ALIKE = (*PRODUCTS[:2], EXPERTS)


@dataclass(frozen=True, kw_only=True)
class CtQuant:
    """What a quant's name says. `weights` is the encoding without its ending, the checkpoint's float type; `arithmetic`
    what activations are rounded to, as `Arithmetic` of validate/execution.py names it.
    """

    name: str
    class_name: str
    weights: str
    arithmetic: str = "float32"


def parse_quant(text: str) -> CtQuant:
    """What a name means, whatever its case; names of the same are given the same `name`.

    Raises: UsageError telling the grammar.
    """
    word = text.lower()
    if word in _FIXED:
        weights, class_name, arithmetic = _FIXED[word]
        return CtQuant(name=text.upper(), class_name=class_name, weights=weights, arithmetic=arithmetic)
    found = _INTEGERS.fullmatch(word)
    if found is None or (found["asym"] and found["bits"] == "8"):
        raise UsageError(f"unknown quant '{text}' for target compressed-tensors: expected {GRAMMAR}")
    bits, group, asym = found["bits"], int(found["group"] or _GROUP), found["asym"] or ""
    name = f"W{bits}A16" + (f"-g{group}" if group != _GROUP else "") + asym
    return CtQuant(name=name, class_name=f"q{bits}", weights=f"ct_int{bits}_g{group}{asym.replace('-', '_')}")


def writable_quant(text: str) -> CtQuant:
    """The same, of what can be written. Raises: UsageError also for a preset that needs the model to be run."""
    found = parse_quant(text)
    if found.name == _CALIBRATED:
        raise UsageError(
            f"quant '{text}' has scales of activations in its files, which only running the model finds: NVFP4A16 stores "
            "the same weights without them"
        )
    return found


@cache
def ct_policy(quant: CtQuant, dtype: DType) -> Policy:
    """The policy of a quant for weights that come in `dtype`: scales and floats are in that type."""
    floats, ending = dtype.value, f"_{dtype.value.lower()}"
    steps = [step + ending for step in _narrower(quant.weights)]
    return Policy(
        name=quant.name,
        class_name=quant.class_name,
        rules=(Rule(steps[0], _QUANTISED), Rule(floats)),
        fallbacks=dict(zip(steps, [*steps[1:], floats], strict=True)),
    )


def _narrower(weights: str) -> list[str]:
    """An encoding, and those that take its place, one after the other, where rows do not fit it."""
    found = re.fullmatch(r"(ct_int\d_g)(\d+)(.*)", weights)
    if found is None:
        return [weights, *(["ct_fp8"] if weights == "ct_fp8_block" else [])]
    groups = [group for group in (128, 64, 32) if group <= int(found[2])]
    return [f"{found[1]}{group}{found[3]}" for group in groups]


def mixable(dtype: DType) -> tuple[str, ...]:
    """What a matrix of integers may be allotted: either width in groups of any size, or the type it comes in."""
    ending = f"_{dtype.value.lower()}"
    return (*(f"ct_int{bits}_g{group}{ending}" for bits in (4, 8) for group in (128, 64, 32)), dtype.value)


# Those that `lfm-convert targets` lists, the default first.
_COMMON = (
    "W4A16", "W4A16-g64", "W4A16-g32", "W4A16-asym", "W8A16", "W8A8", "FP8", "FP8_BLOCK", "NVFP4A16", "MXFP4", "MXFP4A16",
)  # fmt: skip
POLICIES: tuple[Policy, ...] = tuple(ct_policy(parse_quant(name), DType.BF16) for name in _COMMON)
