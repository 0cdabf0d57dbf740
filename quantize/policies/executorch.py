"""Quants of the ExecuTorch target: a grammar of the names that torchao and `export_llm` give them.

`8da4w` is 8-bit dynamic activations with 4-bit weights in groups of 32; `-g64` and `-g128` are larger groups. `8da8w`
has 8-bit weights, a scale a row. The token table is looked up, not multiplied, so it has an encoding of its own and a
tied model stores it twice: `-emb4` is 4 bits in groups of 32, `-emb8` 8 bits by row; without either the table has the
width of the weights. Norms, conv kernels, biases and the router stay float32, and all of `fp32` does.
"""

from __future__ import annotations

import re

from ...graph.errors import UsageError
from ...graph.roles import MATRICES, Trait, of_trait
from ..policy import Policy, Rule

GRAMMAR = "fp32, 8da8w[-emb4|-emb8] or 8da4w[-g32|-g64|-g128][-emb4|-emb8]"
_FLOAT = "fp32"
_INT8 = re.compile(r"8da8w(?:-emb([48]))?")
_INT4 = re.compile(r"8da4w(?:-g(32|64|128))?(?:-emb([48]))?")
_TABLES = {"4": "et_embed4_g32", "8": "et_embed8"}
# Of the grammar, what `lfm-convert targets` lists; every other name of it works as well.
_COMMON = (
    "fp32", "8da8w", "8da4w", "8da4w-emb8", "8da4w-g64", "8da4w-g64-emb8", "8da4w-g128", "8da4w-g128-emb8",
)  # fmt: skip
# For rows that a group size does not divide: smaller groups, then a scale a row.
_FALLBACKS = {
    "et_int4_g128": "et_int4_g64", "et_int4_g64": "et_int4_g32", "et_int4_g32": "et_int8",
    "et_embed4_g32": "et_embed8",
}  # fmt: skip


def mixable(encoding: str) -> tuple[str, ...]:
    """What a matrix, or the token table, may be allotted in place of an encoding; nothing of floats."""
    kinds = ("et_int4_g128", "et_int4_g64", "et_int4_g32", "et_int8"), tuple(_TABLES.values())
    return next((names for names in kinds if encoding in names), ())


def executorch_policy(quant: str) -> Policy:
    """The policy of a name of the grammar, whatever its case; its own name leaves out what goes without saying.

    Raises: UsageError with the grammar.
    """
    name = quant.lower()
    if name == _FLOAT:
        return Policy(name=name, class_name="f32", rules=(Rule("F32"),))
    if found := _INT8.fullmatch(name):
        table = found[1] or "8"
        return _integers("8da8w" + ("" if table == "8" else "-emb4"), "q8", "et_int8", table)
    if found := _INT4.fullmatch(name):
        group, table = found[1] or "32", found[2] or "4"
        name = "8da4w" + ("" if group == "32" else f"-g{group}") + ("" if table == "4" else "-emb8")
        return _integers(name, "q4", f"et_int4_g{group}", table)
    raise UsageError(f"unknown quant '{quant}' for target executorch: expected {GRAMMAR}")


def _integers(name: str, class_name: str, matrices: str, table: str) -> Policy:
    rules = Rule(_TABLES[table], of_trait(Trait.TABLE)), Rule(matrices, MATRICES), Rule("F32")
    return Policy(name=name, class_name=class_name, rules=rules, fallbacks=_FALLBACKS)


POLICIES: tuple[Policy, ...] = tuple(map(executorch_policy, _COMMON))
