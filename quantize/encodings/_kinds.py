"""What kernels and those who call them agree on, without the compiler. Its bytes count for what is compiled."""

from __future__ import annotations

from collections.abc import Mapping

from ...graph.dtypes import DType

# How kernels are told the float type that values are rounded to.
FLOAT_KINDS: Mapping[DType, int] = {DType.F32: 0, DType.F16: 1, DType.BF16: 2}
