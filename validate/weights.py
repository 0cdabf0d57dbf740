"""Whether an artifact's stored weights are the checkpoint's, and as near to it as their format can hold them.

Neither side is run. Every row is compared; of each range of rows a few, and those that are furthest off, are also put
through the format's own encoder: a stored row much further from the checkpoint than that makes it is not the
checkpoint's, whatever the model, and a tensor a little further is worse than its format.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..graph.dtypes import Float32
from ..graph.errors import InputError
from ..graph.graph import Weight, WeightGraph
from ..graph.reference.cores import cut
from ..graph.roles import EXPERTS, Address
from ..graph.tensor import TensorView
from ..quantize.encoding import Encoding
from ..targets.encoded import as_stored, encoding_of
from .gates import GateResult, Part, at_most

# Elements read at a time from each of the two tensors: 2 MiB of float32, which stay near the core.
_BLOCK_ELEMENTS = 1 << 19
# Of each range of so many elements the format's own encoder gets some rows too: some evenly, and those furthest off.
_RANGE_ELEMENTS = 1 << 22
_N_SAMPLED = 8
_N_WORST = 4
# Relative error that float32 arithmetic on the way into a file may leave: a few units in the last place.
_ROUNDING = 2.0**-22

# Of a row's error over what the encoder leaves. Rounding to a grid leaves a step over root twelve, and no encoder that
# means this row, calibrated or not, is further off than a whole step.
_WHOLE_STEP = 3.5
# A tensor no further than this over what the encoder leaves is as good as the encoder.
_AS_GOOD = 1.02

Encodings = Mapping[Address, Encoding]


@dataclass(frozen=True)
class TensorError:
    """One tensor: root of the squared error over the squared weights.

    In a stack of experts `rel_rms` is the worst expert's, whose number is `expert`: an error in one of many would
    hide in the mean. `tensor` is the checkpoint's name of it; `role` and `layer` are the graph's.
    `format_ratio` is the error over what the encoder of the quant leaves, on rows spread over the tensor;
    `row_ratio` that of the row which is furthest over what the encoder of its own encoding leaves there: `row`, of
    `row_expert` in a stack.
    """

    tensor: str
    role: str
    layer: int | None
    rel_rms: float
    expert: int | None = None
    format_ratio: float = 1.0
    row_ratio: float = 0.0
    row: int | None = None
    row_expert: int | None = None

    @property
    def place(self) -> str:
        """`layer 2 expert_gate`."""
        return self.role if self.layer is None else f"layer {self.layer} {self.role}"

    @property
    def where(self) -> str:
        """`layer 2 expert_gate, expert 3`."""
        return self.place if self.expert is None else f"{self.place}, expert {self.expert}"

    @property
    def furthest(self) -> str:
        """`layer 2 expert_gate, expert 3, row 17`."""
        expert = "" if self.row_expert is None else f", expert {self.row_expert}"
        return self.place if self.row is None else f"{self.place}{expert}, row {self.row}"


def weight_errors(
    graph: WeightGraph,
    decoded: Mapping[Address, TensorView],
    planned: Encodings | None = None,
    *,
    is_whole: bool = True,
) -> tuple[TensorError, ...]:
    """The error of every weight of the graph that the artifact stores, worst first.

    `planned` are the encodings that the artifact's quant gives this checkpoint, where that is known: what a tensor of
    another encoding is held to.
    Raises: InputError if the artifact holds a weight in another shape, or lacks one where these are the whole of it.
    """
    known = planned or {}
    found = [
        _measure(weight, _stored(weight, decoded), known.get(weight.address))
        for weight in graph.weights()
        if is_whole or weight.address in decoded
    ]
    return tuple(sorted(found, key=lambda error: -error.rel_rms))


def refuse_misshapen(graph: WeightGraph, decoded: Mapping[Address, TensorView]) -> None:
    """Raises InputError if an artifact lacks a weight of the graph, or holds one in another shape."""
    for weight in graph.weights():
        _stored(weight, decoded)


def as_format_makes_it(graph: WeightGraph, decoded: Mapping[Address, TensorView], planned: Encodings) -> WeightGraph:
    """The checkpoint as the encoders of the artifact's quant store it, encoded and decoded as rows are read."""
    return graph.with_weights(
        {w.address: _Stock(w.view, decoded[w.address], planned.get(w.address)) for w in graph.weights()}
    )


def judge_weights(errors: Sequence[TensorError]) -> GateResult:
    """Whether every stored row is the checkpoint's, whatever the encoder."""
    worst = max(errors, key=lambda error: error.row_ratio)
    source = "times what the encoder of its format leaves of that row: a whole step of the grid"
    return at_most("stored_row", worst.row_ratio, _WHOLE_STEP, Part.WEIGHTS, worst.furthest, source)


def judge_format(errors: Sequence[TensorError]) -> GateResult:
    """Whether every tensor is as near to the checkpoint as the quant's own encoder brings it. Only who does not pass
    need be run to see what it costs: an encoder that weighs errors trades them."""
    worst = max(errors, key=lambda error: error.format_ratio)
    source = "times what the encoder of the quant leaves of the tensor"
    return at_most("format_weights", worst.format_ratio, _AS_GOOD, Part.FORMAT, worst.place, source)


class _Stock(TensorView):
    """Rows of a tensor as an encoder leaves them."""

    def __init__(self, view: TensorView, stored: TensorView, encoding: Encoding | None) -> None:
        super().__init__(view.name, view.dtype, view.shape)
        self._view, self._stored, self._encoding = view, stored, encoding

    def _rows(self, start: int, stop: int) -> Float32:
        return as_stored(self._stored, self._view.rows(start, stop), self._encoding)


def _stored(weight: Weight, decoded: Mapping[Address, TensorView]) -> TensorView:
    stored = decoded.get(weight.address)
    place = weight.role.value if weight.layer is None else f"{weight.role.value} of layer {weight.layer}"
    if stored is None:
        raise InputError(f"the artifact holds no {place}")
    if stored.n_rows * stored.n_cols != weight.view.n_rows * weight.view.n_cols or stored.n_cols != weight.view.n_cols:
        raise InputError(f"the artifact's {place} has shape {list(stored.shape)}: expected {list(weight.shape)}")
    return stored


@dataclass
class _Sums:
    """Squares, over rows seen so far, and the row that is furthest from its encoder's."""

    weights: float = 0.0
    error: float = 0.0
    sampled: float = 0.0
    expected: float = 0.0
    row_ratio: float = 0.0
    row: int | None = None

    @property
    def relative(self) -> float:
        """Infinite if the checkpoint's weights are all zero and the artifact's are not."""
        if self.weights == 0:
            return math.inf if self.error else 0.0
        return math.sqrt(self.error / self.weights)

    @property
    def ratio(self) -> float:
        least = _ROUNDING**2 * self.weights
        return math.sqrt((self.sampled + least) / (self.expected + least)) if self.sampled + least else 1.0


def _measure(weight: Weight, stored: TensorView, planned: Encoding | None) -> TensorError:
    view = weight.view
    n_parts = view.shape[0] if weight.role in EXPERTS else 1
    each = view.n_rows // n_parts
    parts = [_compare(view, stored, part * each, (part + 1) * each, planned) for part in range(n_parts)]
    is_stack = weight.role in EXPERTS
    worst = int(np.argmax([part.relative for part in parts]))
    furthest = int(np.argmax([part.row_ratio for part in parts]))
    return TensorError(
        view.name,
        weight.role.value,
        weight.layer,
        parts[worst].relative,
        worst if is_stack else None,
        max(part.ratio for part in parts),
        parts[furthest].row_ratio,
        parts[furthest].row,
        furthest if is_stack else None,
    )


def _compare(view: TensorView, stored: TensorView, start: int, stop: int, planned: Encoding | None) -> _Sums:
    """A range of rows, held to what the stored tensor's own encoder leaves of them and to what the planned one would."""
    sums, own = _Sums(), encoding_of(stored)
    for low, high in cut(stop - start, max(1, _RANGE_ELEMENTS // view.n_cols)):
        low, high = start + low, start + high
        weights, errors = _squares_of(view, stored, low, high)
        sums.weights += float(weights.sum())
        sums.error += float(errors.sum())
        even = np.unique(np.linspace(0, high - low - 1, _N_SAMPLED).astype(int))
        with np.errstate(divide="ignore", invalid="ignore"):
            order = np.argsort(np.where(errors == 0, 0, errors / weights))  # NaN last, as the worst
        chosen = np.concatenate([even, order[-_N_WORST:]])
        wanted = np.concatenate([view.rows(low + row, low + row + 1) for row in chosen.tolist()])
        expected = _squares(wanted - as_stored(stored, wanted))
        as_planned = expected[: len(even)]
        if planned is not None and planned is not own:
            spread = wanted[: len(even)]
            as_planned = _squares(spread - as_stored(stored, spread, planned))
        sums.sampled += float(errors[even].sum())
        sums.expected += float(as_planned.sum())
        ratios = _ratios(errors[chosen], expected, weights[chosen])
        at = int(ratios.argmax())
        if ratios[at] > sums.row_ratio:
            sums.row_ratio, sums.row = float(ratios[at]), low - start + int(chosen[at])
    return sums


def _squares_of(
    view: TensorView, stored: TensorView, low: int, high: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The sums of squares of each row's weights, and of their errors."""
    weights, errors = np.empty(high - low), np.empty(high - low)
    for first, last in cut(high - low, max(1, _BLOCK_ELEMENTS // view.n_cols)):
        wanted, found = (each.rows(low + first, low + last) for each in (view, stored))
        weights[first:last], errors[first:last] = _squares(wanted), _squares(wanted - found)
    return weights, errors


def _ratios(found: NDArray[np.float64], expected: NDArray[np.float64], weights: NDArray[np.float64]) -> Float32:
    """Of each row its error over the encoder's, both no less than rounding."""
    least = _ROUNDING**2 * weights
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = np.sqrt((found + least) / (expected + least))
    return np.where(found == 0, 0, np.nan_to_num(ratios, nan=math.inf, posinf=math.inf)).astype(np.float32)


def _squares(rows: Float32) -> NDArray[np.float64]:
    """The sum of squares of each row."""
    found: NDArray[np.float64] = np.einsum("ij,ij->i", rows, rows).astype(np.float64)
    return found
