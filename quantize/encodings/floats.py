"""Floating-point storage: float32, float16, bfloat16."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...graph.dtypes import DType, Float32, to_bfloat16, widen
from ..encoding import Bytes, Encoding, Part


class _Float(Encoding):
    numpy_dtype: ClassVar[np.dtype[Any]]

    def parts(self, n_cols: int) -> tuple[Part, ...]:
        return (Part("values", self.numpy_dtype, (n_cols,)),)


class FloatF32(_Float):
    """IEEE single, as it is."""

    name = "F32"
    class_name = "f32"
    ggml_type = 0
    numpy_dtype = np.dtype("<f4")

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        return (rows,)

    def decode(self, *parts: Bytes) -> Float32:
        return parts[0].astype(np.float32)


class FloatF16(_Float):
    """IEEE half, nearest even; beyond ±65504 becomes infinity, which the writer refuses."""

    name = "F16"
    class_name = "f16"
    ggml_type = 1
    numpy_dtype = np.dtype("<f2")

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        with np.errstate(over="ignore"):
            return (rows.astype("<f2"),)

    def decode(self, *parts: Bytes) -> Float32:
        return parts[0].astype(np.float32)


class FloatBF16(_Float):
    """The upper half of IEEE single, nearest even, as raw 16-bit words."""

    name = "BF16"
    class_name = "f16"
    ggml_type = 30
    numpy_dtype = np.dtype("<u2")

    def encode(self, rows: Float32, importance: Float32 | None = None) -> tuple[Bytes, ...]:
        return (to_bfloat16(rows),)

    def decode(self, *parts: Bytes) -> Float32:
        return widen(np.ascontiguousarray(parts[0]).view("<u2"), DType.BF16)


ENCODINGS: tuple[Encoding, ...] = (FloatF32(), FloatF16(), FloatBF16())
