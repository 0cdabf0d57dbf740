"""The weight graph and the drive shaft. The Python API: `convert`, `plan`, `validate`.

from lfm_convert.convert import convert
result = convert("path/to/checkpoint", target="onnx", quant="q4f16")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .pipeline import Converted, convert, plan, validate

__all__ = ["Converted", "convert", "plan", "validate"]


def __getattr__(name: str) -> Any:
    # Lazy, because lower layers import this package for their own needs.
    if name not in __all__:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    from . import pipeline

    return getattr(pipeline, name)
