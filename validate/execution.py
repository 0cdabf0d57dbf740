"""Whether a runtime computes what the model says, whatever the weights: the artifact's logits against the graph's
own forward run with the weights that the artifact stores.

Quantisation is on both sides of this comparison, so that what is left is arithmetic; and how far arithmetic may move
this very model is measured (validate/floor.py). A wrong router, a wrong rotation or a convolution read backwards
fails here at any number of bits.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..targets.target import Artifact, Target
from .experts import LayerExperts
from .gates import GateResult, Part, at_least, at_most
from .measure import Score
from .metrics import Float64, Metrics
from .probes import LAST_ALONE, CacheCheck
from .vectors import VectorMetrics, VectorScore, exchanged, nearness_moved

if TYPE_CHECKING:
    from .floor import Distance


class Arithmetic(enum.StrEnum):
    """What a runtime multiplies in: the type of the activations its kernels take."""

    FLOAT32 = "float32"
    FLOAT16 = "float16"
    INT8 = "int8"
    FLOAT8 = "float8"
    FLOAT4 = "float4"


# Divergence grows with the square of the noise. Rounding of activations is what the floor does itself, and a runtime
# may do it twice as coarsely. Of float32 the floor only changes the order of additions, while runtimes also
# approximate exponentials and roots to a few units in the last place: eight times the noise.
ROOM: Mapping[Arithmetic, float] = {each: 64.0 if each is Arithmetic.FLOAT32 else 4.0 for each in Arithmetic}
# Nats that rounding logits of any model to float32 makes.
LEAST = 1e-11
# Positions are compared by these quantiles: what few positions do, where rounding sent a token to another expert, is
# no measure of the others.
_PERCENTILES = (50, 90, 97)
# Fewer positions of a prompt say little of its median.
_MEDIAN_POSITIONS = 32
# A share so far below chance that a sound runtime does not see it, in standard errors.
_ERRORS = 4.0
# Half as much again as rounding explains: too little to be told from it, and enough to try known mistakes.
SUSPICIOUS = 1.5

_ARITHMETIC = {"f32": Arithmetic.FLOAT32, "f16": Arithmetic.FLOAT16}


def arithmetic_of(target: Target, artifact: Artifact) -> Arithmetic:
    """What a target's runtime computes an artifact in: CPU kernels of quantised weights quantise activations, too."""
    said = target.arithmetic_of(artifact.quant)
    return Arithmetic(said) if said else _ARITHMETIC.get(artifact.class_name, Arithmetic.INT8)


def judge_execution(scores: Sequence[Score], floor: Distance) -> list[GateResult]:
    """The gates of one artifact's execution: each quantile of its divergence from its own weights' forward, and the
    median of the prompt that is furthest off, against what rounding alone does on the same prompts. NaN passes none.
    """
    room = ROOM[floor.arithmetic]
    source = f"{room:g} times what {floor.how} do to this model"
    found, allowed = floor.compared(scores), floor.compared(floor.scores)
    gates = [
        at_most(f"execution_{floor.measure}_p{percent}", value, room * least + LEAST, Part.EXECUTION, source=source)
        for percent, value, least in zip(_PERCENTILES, _percentiles(found), _percentiles(allowed), strict=True)
    ]
    long = max(min(_MEDIAN_POSITIONS, len(score.divergence)) for score in found)
    medians = [
        (_median(a.divergence), room * _median(b.divergence) + LEAST, a.id)
        for a, b in zip(found, allowed, strict=True)
        if len(a.divergence) >= long
    ]
    value, limit, prompt = max(medians, key=lambda each: each[0] / each[1] if each[0] == each[0] else math.inf)
    return [*gates, at_most(f"execution_{floor.measure}_prompt", value, limit, Part.EXECUTION, prompt, source)]


def _percentiles(scores: Sequence[Score]) -> list[float]:
    """Quantiles of the divergence over all positions; NaN if any is NaN."""
    return np.percentile(np.concatenate([score.divergence for score in scores]), _PERCENTILES).tolist()


def _median(kld: Float64) -> float:
    return float(np.median(kld))


def judge_unread(scores: Sequence[Score], floor: Distance) -> GateResult:
    """The one gate of execution where weights cannot be read: the artifact's median divergence from the checkpoint on
    the probe, against what rounding to its class does to that.
    """
    value, usual = (_percentiles(floor.compared(each))[0] for each in (scores, floor.scores))
    room = ROOM[floor.arithmetic]
    source = f"{room:g} times what {floor.how} do to this model"
    return at_most(f"class_{floor.measure}", value, room * usual + LEAST, Part.EXECUTION, source=source)


def is_suspicious(scores: Sequence[Score], floor: Distance) -> bool:
    """Whether more was moved than rounding explains, however little."""
    ratio = SUSPICIOUS if floor.arithmetic is not Arithmetic.FLOAT32 else ROOM[Arithmetic.FLOAT32]
    moved, rounding = (_percentiles(floor.compared(each))[0] for each in (scores, floor.scores))
    return not moved <= ratio * rounding + LEAST


def judge_experts(layers: Sequence[LayerExperts], floor: Distance) -> list[GateResult]:
    """The gate of the layer furthest below what rounding leaves; none for a dense model or choices not seen."""
    if not layers or floor.experts_agree is None:
        return []
    room = math.sqrt(ROOM[floor.arithmetic])  # a share of near-ties grows with the noise itself
    gates = []
    for layer in layers:
        turned = room * (1 - floor.experts_agree[layer.layer])
        n = max(1, layer.n_choices)
        limit = 1 - turned - _ERRORS * math.sqrt(max(turned, 1 / n) / n)
        source = f"{room:g} times what {floor.how} turn over, and {_ERRORS:g} standard errors"
        gates.append(at_least("experts_agree", layer.execution, limit, Part.EXECUTION, f"layer {layer.layer}", source))
    return [min(gates, key=lambda gate: gate.value - gate.limit)]


def judge_ranks(scores: Sequence[Score], floor: Distance) -> list[GateResult]:
    """The gate of the order in which texts stand beside each other by their vectors; none of logits. An exchange counts
    if the lead was more than rounding moves: with the noise itself, of which a divergence is the square.
    """
    found, usual = ([score for score in each if isinstance(score, VectorScore)] for each in (scores, floor.scores))
    if not found:
        return []
    room = math.sqrt(ROOM[floor.arithmetic])
    tie = 2 * (room * nearness_moved(usual) + math.sqrt(LEAST))
    share, where = exchanged(found, tie=tie)
    source = f"leads beyond {room:g} times what {floor.how} move of this model's texts, either of both"
    return [at_most("execution_ranks", share, 0, Part.EXECUTION, where, source)]


def judge_finite(metrics: Metrics | VectorMetrics) -> GateResult:
    return at_least("finite", float(metrics.finite), 1.0, Part.EXECUTION)


def judge_cache(cache: CacheCheck, floor: Distance) -> list[GateResult]:
    """A gate for each way in which prompts were run again, by the position that nine in ten are below.

    `floor` is what rounding does to the artifact's own weights: chunks and batches change the order of additions, and
    what is rounded together. In float32 no position is excepted, nor is one that is alone.
    """
    klds = np.concatenate([score.divergence for score in floor.scores])
    room, is_exact = ROOM[floor.arithmetic], floor.arithmetic is Arithmetic.FLOAT32
    source = f"{room:g} times what {floor.how} do to this model"
    gates = []
    for probe in cache.probes:
        is_whole = is_exact or probe.name == LAST_ALONE
        value = probe.kld if is_whole else probe.kld_p90
        limit = room * float(klds.max() if is_whole else np.percentile(klds, _PERCENTILES[-1])) + LEAST
        where = f"{probe.prompt}, position {probe.position}"
        gates.append(at_most(f"cache_{probe.name}_kld", value, limit, Part.CACHE, where, source))
    return gates
