"""Whether a runtime computes what the model says, whatever the weights: the artifact's logits against the graph's
own forward run with the weights that the artifact stores.

Quantisation is on both sides of this comparison, so that its tolerance is that of arithmetic alone. A wrong router,
a wrong rotation or a convolution read backwards fails here at any number of bits.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..targets.target import Target
from .experts import LayerExperts
from .gates import GateResult, Part, at_least, at_most, raised, raised_to
from .metrics import Metrics


class Arithmetic(enum.StrEnum):
    """What a runtime multiplies in: the type of the activations its kernels take."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """How far arithmetic may move the distributions. Units: nats, of the mean and of the median position.

    `measured` is the largest mean and median found on sound artifacts of the bundled models.
    """

    kld_mean: float
    kld_median: float
    measured: str


# By arithmetic and whether the model is a mixture, where rounding can send a token to another expert: that moves
# few positions far, which the mean must allow and the median need not.
TOLERANCES: Mapping[tuple[Arithmetic, bool], Tolerance] = {
    (Arithmetic.FLOAT32, False): Tolerance(kld_mean=1e-8, kld_median=1e-9, measured="llama.cpp F32 2.3e-12, MLX 5e-12"),
    (Arithmetic.FLOAT32, True): Tolerance(kld_mean=1e-6, kld_median=1e-9, measured="llama.cpp F32 3e-12, MLX 5e-12"),
    (Arithmetic.FLOAT16, False): Tolerance(kld_mean=2e-4, kld_median=1e-4, measured="BF16 2.3e-5, F16 4e-7"),
    (Arithmetic.FLOAT16, True): Tolerance(kld_mean=5e-3, kld_median=1e-4, measured="BF16 9.5e-4, F16 1.1e-5"),
    (Arithmetic.INT8, False): Tolerance(kld_mean=4e-3, kld_median=2e-3, measured="Q4_1 4.6e-4, ONNX q4_mixed 4.4e-4"),
    (Arithmetic.INT8, True): Tolerance(kld_mean=2e-2, kld_median=2e-3, measured="Q8_0 5.2e-3, ONNX q4 4.5e-3"),
}

_ARITHMETIC = {"f32": Arithmetic.FLOAT32, "f16": Arithmetic.FLOAT16}


def arithmetic_of(target: Target, class_name: str) -> Arithmetic:
    """What a target's runtime computes a class in: CPU kernels of quantised weights quantise activations, too."""
    return Arithmetic.FLOAT32 if target.runs_in_float32 else _ARITHMETIC.get(class_name, Arithmetic.INT8)


def judge_execution(
    metrics: Metrics, arithmetic: Arithmetic, *, is_moe: bool, floor: Metrics | None = None
) -> list[GateResult]:
    """The gates of one artifact's execution; `floor` as in `gates.judge`. NaN passes none."""
    limits = TOLERANCES[arithmetic, is_moe]
    source = f"{arithmetic} arithmetic; sound artifacts of the bundled models: {limits.measured}"
    gates = [
        at_most("execution_kld_mean", metrics.kld_mean, limits.kld_mean, Part.EXECUTION, source=source),
        at_most("execution_kld_median", metrics.kld_median, limits.kld_median, Part.EXECUTION, source=source),
    ]
    if arithmetic is Arithmetic.FLOAT32:
        same = metrics.same_top1 + metrics.n_ties / metrics.n_positions
        gates.append(at_least("execution_top1", same, 0.999, Part.EXECUTION, source=source))
    return [raised(gate, floor) for gate in gates]


# The least share of experts that a layer must choose as its own weights say, by arithmetic: a wrong router is far
# below, and what rounding turns over is what the floor measures.
EXPERTS_AGREE: Mapping[Arithmetic, float] = {
    Arithmetic.FLOAT32: 0.999,
    Arithmetic.FLOAT16: 0.98,
    Arithmetic.INT8: 0.95,
}


def judge_experts(layers: Sequence[LayerExperts], arithmetic: Arithmetic, floor: float | None) -> list[GateResult]:
    """The gate of the layer that agrees least; none for a dense model or choices that were not seen."""
    if not layers:
        return []
    worst = min(layers, key=lambda layer: layer.execution)
    source = f"{arithmetic} arithmetic; sound artifacts of the bundled mixture"
    limit = EXPERTS_AGREE[arithmetic]
    gate = at_least("experts_agree", worst.execution, limit, Part.EXECUTION, f"layer {worst.layer}", source)
    return [gate if floor is None else raised_to(gate, floor)]
