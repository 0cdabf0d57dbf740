"""What an export holds in memory beside the writers' byte budget, without torch."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.roles import EXPERTS, Role
from ..plans import TensorPlan
from .layout import n_cuts

# Fitted to the peak RSS of exports with executorch 1.5.1 and torch 2.13.0, of which the libraries alone are 375 MB: a
# model of four narrow layers 453 MB, one of 24 with 704 experts 608 MB, four layers of 2,048 columns, two with 32 experts, 627 MB.
_LIBRARY_BYTES = 470_000_000
# The scales of the largest matrix while XNNPACK lowers its stand-in, bytes an element; its values are not touched.
_LOWERING_BYTES = {"f32": 0.0, "": 0.3}
# The delegate of an expert: its branch, its names, its blob.
_EXPERT_BYTES = 150_000


def base_memory_bytes(tensors: Sequence[TensorPlan], class_name: str) -> int:
    """Within a third of the measured peak, and above it: a model that is small does not fill the writers' budget."""
    largest = max(tensor.view.n_rows * tensor.view.n_cols // n_cuts(tensor) for tensor in tensors)
    n_delegates = sum(n_cuts(tensor) for tensor in tensors if tensor.role in EXPERTS) // len(EXPERTS)
    per_element = _LOWERING_BYTES.get(class_name, _LOWERING_BYTES[""])
    table = sum(tensor.nbytes for tensor in tensors if tensor.role is Role.EMBED)  # copied when it is emitted
    return int(_LIBRARY_BYTES + per_element * largest + table + n_delegates * _EXPERT_BYTES)
