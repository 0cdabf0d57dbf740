"""Quants of the MLX target: a grammar, some of whose words are names that mlx-community gives its folders.

| word                                 | means                                                                     |
|--------------------------------------|---------------------------------------------------------------------------|
| `2bit` … `6bit`, `8bit`              | affine codes of so many bits                                              |
| `mixed_4_8`                          | `4bit`, with the embedding and what is most sensitive at 8 bits           |
| `-g32`, `-g64`, `-g128` after these  | elements a group has; 64 if nothing is said                               |
| `mxfp4`, `mxfp8`, `nvfp4`            | tiny floats, in groups that their format fixes                            |
| `-e4`, `-e5`, `-e6`, `-e8` at an end | affine bits of the embedding, and of a head of its own                    |
| `bf16`                               | plain bfloat16                                                            |

The router is 8-bit in groups of 64 whatever the rest is, and so is what mlx-lm's class of a family says. Norms, biases and conv kernels stay in the checkpoint's float
type, and so do rows that a group does not divide.
Source: mlx-lm `mlx_lm/utils.py`, `quantize_model`, and the `quant_predicate` of its models with routers.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache

from ...graph.dtypes import DType
from ...graph.errors import UsageError
from ...graph.roles import Role, Trait, of_trait
from ..policy import Policy, Rule

GRAMMAR = (
    "2bit, 3bit, 4bit, 5bit, 6bit, 8bit or mixed_4_8, each also with -g32, -g64 or -g128 for the size of a group; "
    "mxfp4, mxfp8 or nvfp4; any of these also with -e4, -e5, -e6 or -e8 for the bits of the embedding; or bf16"
)
_WORDS = re.compile(
    r"(?:(?P<codes>(?P<bits>[234568])bit|mixed_4_8)(?:-g(?P<group>32|64|128))?|(?P<floats>mxfp4|mxfp8|nvfp4))"
    r"(?:-e(?P<table_bits>[4568]))?|bf16"
)
_GROUP = 64
# As the gates count: of mxfp8's eight bits three are mantissa.
_BITS = {"mixed_4_8": 4, "mxfp4": 4, "mxfp8": 5, "nvfp4": 4}
_LEAST_CLASS = 3  # no gates are stated below three bits

ROUTERS = of_trait(Trait.ROUTER)
_TABLES = of_trait(Trait.TABLE, Trait.HEAD)
_MATRICES = of_trait(Trait.MATRIX, Trait.EXPERTS)
# The roles whose widening lowers the divergence most a byte (docs/mlx.md), beside the embedding, which is also the head.
# mlx-lm's own mixed recipes go by names that not every model has, and narrow the router.
_SENSITIVE = frozenset({Role.CONV_OUT, Role.ATTN_K, Role.ATTN_V})


@dataclass(frozen=True, kw_only=True)
class MlxQuant:
    """What a quant's name says. Encodings are named without their ending, which is the checkpoint's float type.

    `matrices` is None for plain bfloat16.
    """

    name: str
    class_name: str
    matrices: str | None = None
    sensitive: str = ""
    table: str = ""

    @property
    def names_table(self) -> bool:
        """Whether the bits of embedding and head are its own."""
        return self.table != self.sensitive


def parse_quant(text: str) -> MlxQuant:
    """What a name means, whatever its case; names of the same are given the same `name`.

    Raises: UsageError telling the grammar.
    """
    found = _WORDS.fullmatch(text.lower())
    if found is None:
        raise UsageError(f"unknown quant '{text}' for target mlx: expected {GRAMMAR}")
    if found[0] == "bf16":
        return MlxQuant(name="bf16", class_name="f16")
    stem, group = found["codes"] or found["floats"], int(found["group"] or _GROUP)
    bits = int(found["bits"] or _BITS[stem])
    matrices = found["floats"] or f"affine{bits}_g{group}"
    sensitive = f"affine8_g{group}" if stem == "mixed_4_8" else matrices
    table = f"affine{found['table_bits']}_g{group}" if found["table_bits"] else sensitive
    name = stem + (f"-g{group}" if group != _GROUP else "") + (f"-e{found['table_bits']}" if table != sensitive else "")
    least = min(bits, int(found["table_bits"] or bits))
    return MlxQuant(
        name=name, class_name=f"q{max(least, _LEAST_CLASS)}", matrices=matrices, sensitive=sensitive, table=table
    )


@cache
def mlx_policy(
    quant: MlxQuant,
    dtype: DType,
    *,
    refined: bool = False,
    packs_routers: bool = True,
    wide: frozenset[Role] = ROUTERS,
) -> Policy:
    """The policy of a quant for weights that come in `dtype`: MLX keeps scales and floats in that type.

    Routers that a quantised source kept as floats stay so without `packs_routers`. What is `wide` has 8 bits whatever
    the others have, but for a head whose bits the quant names.
    """
    floats = dtype.value
    if quant.matrices is None:
        return Policy(name=quant.name, class_name=quant.class_name, rules=(Rule(floats),))
    ending = f"_{floats.lower()}" + ("_refined" if refined else "")
    wide = (wide if packs_routers else wide - ROUTERS) - (_TABLES if quant.names_table else frozenset())
    packed = (
        *([Rule(f"affine8_g{_GROUP}" + ending, wide)] if wide else []),
        Rule(quant.table + ending, _TABLES),
        Rule(quant.sensitive + ending, _SENSITIVE),
        Rule(quant.matrices + ending, _MATRICES),
    )
    fallbacks = {rule.encoding: floats for rule in packed}
    return Policy(name=quant.name, class_name=quant.class_name, rules=(*packed, Rule(floats)), fallbacks=fallbacks)


def mixable(dtype: DType) -> tuple[str, ...]:
    """What a module may be allotted of weights that come in `dtype`: mlx-lm reads bits and group of each by itself."""
    ending = dtype.value.lower()
    packed = (f"affine{bits}_g{group}_{ending}" for bits in (2, 3, 4, 5, 6, 8) for group in (128, 64, 32))
    return (*packed, dtype.value)


# Those that `lfm-convert targets` lists, the default first.
_COMMON = (
    "8bit", "6bit", "5bit", "4bit", "3bit", "mixed_4_8", "4bit-g32", "4bit-e6", "5bit-e6",
    "mxfp8", "mxfp4", "mxfp4-e8", "nvfp4", "nvfp4-e8", "bf16",
)  # fmt: skip
POLICIES: tuple[Policy, ...] = tuple(mlx_policy(parse_quant(name), DType.BF16) for name in _COMMON)
