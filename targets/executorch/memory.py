"""What an export holds in memory beside the writers' byte budget, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.roles import EXPERTS
from ..plans import TensorPlan
from .layout import n_cuts

# Fitted to the peak RSS of exports with executorch 1.5.1 and torch 2.13.0: the bundled dense model 466 MB, one of
# 350 million weights 797 MB, two layers of one of 2.6 billion 1421 MB in 8da4w and 3027 MB in fp32.
_LIBRARY_BYTES = 470_000_000
# What XNNPACK's passes hold of the largest matrix while they lower its stand-in, bytes an element.
_LOWERING_BYTES = {"f32": 9.3, "": 3.2}
# The delegate of an expert: its branch, its names, its blob.
_EXPERT_BYTES = 900_000


def base_memory_bytes(tensors: Sequence[TensorPlan], class_name: str) -> int:
    """Within a third of the measured peak, and above it: a model that is small does not fill the writers' budget."""
    largest = max(tensor.view.n_rows * tensor.view.n_cols // n_cuts(tensor) for tensor in tensors)
    n_delegates = sum(n_cuts(tensor) for tensor in tensors if tensor.role in EXPERTS) // len(EXPERTS)
    per_element = _LOWERING_BYTES.get(class_name, _LOWERING_BYTES[""])
    return int(_LIBRARY_BYTES + per_element * largest + n_delegates * _EXPERT_BYTES)
