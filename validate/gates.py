"""Limits an artifact must keep, by quality class: a table of data and the judge that reads it.

A class is what `Policy.class_name` says (f32, f16, q8, q6, q5, q4, q3). The limits are absolute lines for a
model nobody has measured yet; they catch what is broken, not what is a little worse than it could be.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from ..convert.errors import UsageError
from .metrics import Metrics
from .probes import CacheCheck

# A limit is never tighter than so many times the distance of the checkpoint from itself: validate/floor.py.
FLOORS = 2


class Part(enum.StrEnum):
    """What a gate is about, in the order in which a failure is best read."""

    TOKENIZER = "tokenizer"
    WEIGHTS = "weights"
    EXECUTION = "execution"
    CACHE = "cache"
    QUALITY = "quality"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a class must keep.

    Units: `kld_*` in nats at most; `same_top1` a fraction at least; `ppl_change` the distance of the perplexity
    ratio from 1 at most; `max_abs_logit` in logits at most, where a class is meant to be exact. `cache_kld` is
    the largest divergence between prefilling whole and step by step, and between before and after a reset.
    `weight_rms` is the relative error of the worst tensor at most.
    """

    kld_mean: float
    kld_p999: float
    same_top1: float
    ppl_change: float
    cache_kld: float
    weight_rms: float
    max_abs_logit: float | None = None
    source: str


@dataclass(frozen=True)
class GateResult:
    """One limit and what was measured.

    `at_least` tells which side passes; `where` names what was worst; `source` is what the limit rests on.
    """

    name: str
    value: float
    limit: float
    passed: bool
    at_least: bool = False
    part: Part = Part.QUALITY
    where: str = ""
    source: str = ""

    @property
    def sentence(self) -> str:
        """What was measured: `kld_mean is 0.31, limit at most 0.2`."""
        if self.name == "finite":
            return "the logits are finite" if self.passed else "the logits hold NaN or infinity"
        side = "least" if self.at_least else "most"
        place = f" ({self.where})" if self.where else ""
        return f"{self.name} is {self.value:.5g}{place}, limit at {side} {self.limit:.5g}"


# The key is (class, whether the model is a mixture of experts). A small error can send a token to another
# expert, so that a mixture is never held to less than its dense class.
LIMITS: Mapping[tuple[str, bool], Limits] = {
    ("f32", False): Limits(
        kld_mean=1e-5, kld_p999=1e-3, same_top1=1.0, ppl_change=1e-4, cache_kld=1e-5, weight_rms=1e-6,
        max_abs_logit=1e-3,
        source="Optimum's 1e-5 and Liquid's allclose 1e-4 … 1e-3 on f32 logits",
    ),
    ("f32", True): Limits(
        kld_mean=1e-5, kld_p999=1e-3, same_top1=1.0, ppl_change=1e-4, cache_kld=1e-5, weight_rms=1e-6,
        max_abs_logit=1e-3,
        source="as dense",
    ),
    ("f16", False): Limits(
        kld_mean=0.005, kld_p999=0.1, same_top1=0.97, ppl_change=0.005, cache_kld=0.01, weight_rms=0.005,
        source="Olive f16 execution 0.0008 … 0.004 (1.2B, 2.6B); f16 weights with f32 logits stay below 1e-4",
    ),
    ("f16", True): Limits(
        kld_mean=0.03, kld_p999=1.0, same_top1=0.94, ppl_change=0.01, cache_kld=0.1, weight_rms=0.005,
        source="Olive 8B-A1B f16: 0.0224, top-1 95.9 %",
    ),
    ("q8", False): Limits(
        kld_mean=0.012, kld_p999=0.3, same_top1=0.94, ppl_change=0.005, cache_kld=0.05, weight_rms=0.04,
        source="Q8_0 with 8-bit activations 0.0017 … 0.0084 (230M … 2.6B), ONNX int8 0.0017 … 0.009",
    ),
    ("q8", True): Limits(
        kld_mean=0.03, kld_p999=3.0, same_top1=0.94, ppl_change=0.02, cache_kld=0.2, weight_rms=0.04,
        source="ONNX int8 8B-A1B: 0.0086 (chat), 0.0256 (wikitext)",
    ),
    ("q6", False): Limits(
        kld_mean=0.04, kld_p999=0.8, same_top1=0.93, ppl_change=0.01, cache_kld=0.05, weight_rms=0.05,
        source="Llama-3 Q6_K 0.0055, times LFM2.5's 3 to 5: an estimate",
    ),
    ("q6", True): Limits(
        kld_mean=0.06, kld_p999=3.5, same_top1=0.92, ppl_change=0.03, cache_kld=0.2, weight_rms=0.05,
        source="between q8 and q4: an estimate",
    ),
    ("q5", False): Limits(
        kld_mean=0.08, kld_p999=1.5, same_top1=0.88, ppl_change=0.03, cache_kld=0.05, weight_rms=0.09,
        source="Llama-3 Q5_K_M 0.0108, times LFM2.5's 3 to 5: an estimate",
    ),
    ("q5", True): Limits(
        kld_mean=0.12, kld_p999=4.5, same_top1=0.87, ppl_change=0.05, cache_kld=0.2, weight_rms=0.09,
        source="between q8 and q4: an estimate",
    ),
    ("q4", False): Limits(
        kld_mean=0.20, kld_p999=4.0, same_top1=0.78, ppl_change=0.12, cache_kld=0.1, weight_rms=0.2,
        source="Q4_K_M 0.099 … 0.155 (230M, 1.2B, 2.6B), top-1 81 … 83 %; 350M needs its own line (0.48)",
    ),
    ("q4", True): Limits(
        kld_mean=0.22, kld_p999=6.0, same_top1=0.78, ppl_change=0.12, cache_kld=0.3, weight_rms=0.2,
        source="ONNX int4 8B-A1B: 0.085 (chat), 0.21 (wikitext)",
    ),
    ("q3", False): Limits(
        kld_mean=0.60, kld_p999=8.0, same_top1=0.60, ppl_change=0.40, cache_kld=0.1, weight_rms=0.35,
        source="MLX 3-bit of the bundled model 0.29: an estimate",
    ),
    ("q3", True): Limits(
        kld_mean=0.70, kld_p999=9.0, same_top1=0.58, ppl_change=0.40, cache_kld=0.3, weight_rms=0.35,
        source="MLX 3-bit of the bundled model 0.35: an estimate",
    ),
}  # fmt: skip


def limits_of(class_name: str, *, is_moe: bool) -> Limits:
    """The limits of a class. Raises UsageError for a class that has none."""
    found = LIMITS.get((class_name, is_moe))
    if found is None:
        classes = ", ".join(dict.fromkeys(name for name, _ in LIMITS))
        raise UsageError(f"no gates are stated for class '{class_name}': expected one of {classes}")
    return found


def judge(metrics: Metrics, class_name: str, *, is_moe: bool, floor: Metrics | None = None) -> list[GateResult]:
    """Every gate of the class; of logits that are not finite, that one alone. NaN passes no gate.

    `floor` is the checkpoint against itself in the artifact's arithmetic: a limit below twice that is raised to it.
    """
    limits = limits_of(class_name, is_moe=is_moe)
    finite = at_least("finite", float(metrics.finite), 1.0)
    if not finite.passed:
        return [finite]
    same = metrics.same_top1 + metrics.n_ties / metrics.n_positions
    gates = [
        finite,
        at_most("kld_mean", metrics.kld_mean, limits.kld_mean),
        at_most("kld_p999", metrics.kld_p999, limits.kld_p999),
        at_least("same_top1", same, limits.same_top1),
        at_most("ppl_change", abs(metrics.ppl_ratio - 1.0), limits.ppl_change),
    ]
    if limits.max_abs_logit is not None:
        gates.append(at_most("max_abs_logit", metrics.max_abs_logit, limits.max_abs_logit))
    stated = f"class {class_name}, {'mixture' if is_moe else 'dense'}: {limits.source}"
    return [raised(replace(gate, source=stated), floor) for gate in gates]


# What of the floor each gate is about.
_OF_FLOOR: Mapping[str, Callable[[Metrics], float]] = {
    "kld_mean": lambda floor: floor.kld_mean,
    "kld_p999": lambda floor: floor.kld_p999,
    "same_top1": lambda floor: floor.same_top1,
    "ppl_change": lambda floor: abs(floor.ppl_ratio - 1.0),
    "max_abs_logit": lambda floor: floor.max_abs_logit,
    "execution_kld_mean": lambda floor: floor.kld_mean,
    "execution_kld_median": lambda floor: floor.kld_median,
    "execution_top1": lambda floor: floor.same_top1,
}


def raised(gate: GateResult, floor: Metrics | None) -> GateResult:
    """The gate, with a limit of twice the measured floor if that is looser."""
    value = _OF_FLOOR.get(gate.name)
    return gate if floor is None or value is None else raised_to(gate, value(floor))


def raised_to(gate: GateResult, floor: float) -> GateResult:
    """The gate, held to no more than twice the distance from perfect that the checkpoint has from itself."""
    limit = 1 - FLOORS * (1 - floor) if gate.at_least else FLOORS * floor
    if not (limit < gate.limit if gate.at_least else limit > gate.limit):
        return gate
    passed = gate.value >= limit if gate.at_least else gate.value <= limit
    source = f"{FLOORS} x the measured floor {floor:.3g}, which is looser than: {gate.source}"
    return replace(gate, limit=limit, passed=passed, source=source)


# Rounding of float32 in a batch and in chunks, with room: an f32 artifact is meant to be exact.
_EXACT_PROBE = 1e-4


def judge_cache(cache: CacheCheck, limits: Limits, floor: Metrics) -> list[GateResult]:
    """A gate for each way in which prompts were run again; exact classes are also held to the logits themselves.

    `floor` is the checkpoint against itself in another order of additions, which is all that chunks may change.
    """
    source = "between what rounding does and what a forgotten convolution state does"
    gates = []
    for probe in cache.probes:
        where = f"{probe.prompt}, position {probe.position}"
        name = f"cache_{probe.name}"
        gate = at_most(f"{name}_kld", probe.kld, limits.cache_kld, Part.CACHE, where, source)
        gates.append(raised_to(gate, floor.kld_max))
        if limits.max_abs_logit is not None:
            gate = at_most(f"{name}_logit", probe.max_abs, _EXACT_PROBE, Part.CACHE, where, "float32 rounding")
            gates.append(raised_to(gate, floor.max_abs_logit))
    return gates


def at_most(
    name: str, value: float, limit: float, part: Part = Part.QUALITY, where: str = "", source: str = ""
) -> GateResult:
    return GateResult(name, value, limit, value <= limit, part=part, where=where, source=source)


def at_least(
    name: str, value: float, limit: float, part: Part = Part.QUALITY, where: str = "", source: str = ""
) -> GateResult:
    return GateResult(name, value, limit, value >= limit, at_least=True, part=part, where=where, source=source)


def verdict(gates: Sequence[GateResult]) -> str:
    """`pass` or `fail`; no gates at all prove nothing, so they fail."""
    return "pass" if gates and all(gate.passed for gate in gates) else "fail"


def part_verdicts(gates: Sequence[GateResult]) -> dict[str, str]:
    """The verdict of each part that was looked at."""
    parts = {part: [gate for gate in gates if gate.part is part] for part in Part}
    return {part.value: verdict(found) for part, found in parts.items() if found}
