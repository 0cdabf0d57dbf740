"""How far an artifact's stored weights are from the checkpoint's, tensor by tensor, without running either."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..convert.errors import InputError
from ..convert.model.graph import EXPERTS, Weight, WeightGraph
from ..convert.model.tensor import TensorView
from ..targets.target import Address

# Elements read at a time from each of the two tensors: 16 MiB of float32.
_BLOCK_ELEMENTS = 1 << 22


@dataclass(frozen=True)
class TensorError:
    """One tensor: root of the squared error over the squared weights.

    In a stack of experts `rel_rms` is the worst expert's, whose number is `expert`: an error in one of many would
    hide in the mean. `tensor` is the checkpoint's name of it; `role` and `layer` are the graph's.
    """

    tensor: str
    role: str
    layer: int | None
    rel_rms: float
    expert: int | None = None

    @property
    def where(self) -> str:
        """`layer 2 expert_gate, expert 3`."""
        place = self.role if self.layer is None else f"layer {self.layer} {self.role}"
        return place if self.expert is None else f"{place}, expert {self.expert}"


def weight_errors(graph: WeightGraph, decoded: Mapping[Address, TensorView]) -> tuple[TensorError, ...]:
    """The error of every weight of the graph that the artifact stores, worst first.

    Raises: InputError if the artifact lacks a weight or holds it in another shape.
    """
    found = [_measure(weight, _stored(weight, decoded)) for weight in graph.weights()]
    return tuple(sorted(found, key=lambda error: -error.rel_rms))


def _stored(weight: Weight, decoded: Mapping[Address, TensorView]) -> TensorView:
    stored = decoded.get((weight.role, weight.layer))
    place = weight.role.value if weight.layer is None else f"{weight.role.value} of layer {weight.layer}"
    if stored is None:
        raise InputError(f"the artifact holds no {place}")
    if stored.n_rows * stored.n_cols != weight.view.n_rows * weight.view.n_cols or stored.n_cols != weight.view.n_cols:
        raise InputError(f"the artifact's {place} has shape {list(stored.shape)}: expected {list(weight.shape)}")
    return stored


def _measure(weight: Weight, stored: TensorView) -> TensorError:
    view = weight.view
    n_parts = view.shape[0] if weight.role in EXPERTS else 1
    each = view.n_rows // n_parts
    errors = [_relative(view, stored, part * each, (part + 1) * each) for part in range(n_parts)]
    worst = int(np.argmax(errors))
    return TensorError(
        view.name, weight.role.value, weight.layer, errors[worst], worst if weight.role in EXPERTS else None
    )


def _relative(view: TensorView, stored: TensorView, start: int, stop: int) -> float:
    """Relative error of a range of rows; infinite if the checkpoint's are all zero and the artifact's are not."""
    squares = error = 0.0
    step = max(1, _BLOCK_ELEMENTS // view.n_cols)
    for low in range(start, stop, step):
        high = min(low + step, stop)
        wanted = view.rows(low, high).astype(np.float64)
        squares += float(np.vdot(wanted, wanted))
        wanted -= stored.rows(low, high)
        error += float(np.vdot(wanted, wanted))
    if squares == 0:
        return math.inf if error else 0.0
    return math.sqrt(error / squares)
