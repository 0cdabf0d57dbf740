"""All operations that are evaluated, by MIL's names. `read_state` and `write_state` are the machine's own."""

from __future__ import annotations

from functools import cache

from .elementwise import ELEMENTWISE
from .indexing import indexing
from .operator import Operator
from .products import PRODUCTS
from .reductions import REDUCTIONS
from .shapes import SHAPES

# Opsets in which a negative index counts from the end of its axis.
_NEGATIVE = ("CoreML5", "CoreML6")
OPSETS = (*_NEGATIVE, "CoreML7", "CoreML8", "CoreML9")


@cache
def operators(opset: str) -> dict[str, Operator]:
    """The table of an opset."""
    return ELEMENTWISE | REDUCTIONS | SHAPES | PRODUCTS | indexing(negative=opset in _NEGATIVE)
