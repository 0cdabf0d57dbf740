"""What the evaluator knows of an operation: its function of numpy, and which of its operands may stay as stored."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from ..weights import Shape

# The one operand that is a list of values.
LIST = "values"
# No value that is computed, and no state, has more numbers than these: what asks for more is a damaged file.
MAX_NUMBERS = 1 << 30


@dataclass(frozen=True)
class Operator:
    """One operation of MIL; `function` takes its operands by MIL's own names, optional ones with MIL's defaults.

    Operands in `stored` come as a `Weight` if they are one. Those in `alike` are of one element type.
    """

    function: Callable[..., Any]
    stored: tuple[str, ...] = ()
    alike: tuple[str, ...] = ()

    @cached_property
    def operands(self) -> frozenset[str]:
        return frozenset(inspect.signature(self.function).parameters)

    @cached_property
    def required(self) -> frozenset[str]:
        parameters = inspect.signature(self.function).parameters.values()
        return frozenset(each.name for each in parameters if each.default is inspect.Parameter.empty)


def refuse_huge(shape: Iterable[int]) -> Shape:
    """The shape, if a tensor may have it. Raises: ValueError."""
    sizes = tuple(int(size) for size in shape)
    n_numbers = 1
    for size in sizes:
        n_numbers *= size
    if n_numbers > MAX_NUMBERS or min(sizes, default=0) < 0:
        raise ValueError(f"its result would be of shape {list(sizes)}")
    return sizes
