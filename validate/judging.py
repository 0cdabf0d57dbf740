"""What is wrong with one artifact: the gates of every part, from what running it and reading its weights gave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..graph.errors import LfmConvertError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import Forward
from ..graph.roles import Address
from ..graph.tensor import TensorView
from ..targets.target import Artifact, Target
from .execution import (
    LEAST,
    ROOM,
    Arithmetic,
    is_suspicious,
    judge_cache,
    judge_execution,
    judge_experts,
    judge_finite,
    judge_ranks,
    judge_unread,
)
from .experts import LayerExperts
from .floor import Distance, Own, distance
from .gates import GateResult, Part, at_most
from .jobs import Outcome
from .localize import Location, locate
from .measure import Score, measure_of
from .metrics import LogitRows, Metrics, mean_and_error
from .mistakes import explain
from .probes import CacheCheck
from .prompts import EncodedPrompt
from .steps import Step, Steps
from .stops import StopCheck, judge_stops
from .vectors import VectorMetrics
from .weights import Encodings, TensorError, as_format_makes_it, judge_format, judge_weights

# Of the divergence that the encoder of the quant itself makes: less than this over it is no worse, whatever the error.
_AS_GOOD = 0.05
_ERRORS = 3.0
# Options that name a file which need not be there any more, and change no tensor's encoding.
_UNPLANNED = ("imatrix", "outfile")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """What an artifact holds: its weights, what its quant would make of them, and how far they are off.

    `own` is the graph run with them, `floor` what rounding does to that. Where not all can be read (`unread` says why),
    they are the checkpoint's own, and what rounding to the artifact's class does to it. Without a checkpoint at hand
    there are no `errors`.
    """

    decoded: Mapping[Address, TensorView]
    planned: Encodings
    errors: Sequence[TensorError]
    own: Own
    floor: Distance
    unread: str = ""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What running one artifact gave. `fidelity` compares it with `Stored.own` on the probe; empty if that was not run,
    or not to its end. `cache` has the prompts' ids. Of a model that gives vectors `vectors` stands for `metrics`, and
    `own_vectors` compares with `Stored.own`.
    """

    outcome: Outcome
    scores: list[Score]
    metrics: Metrics | None
    fidelity: list[Score]
    probe_logits: list[LogitRows]
    experts: Sequence[LayerExperts]
    cache: CacheCheck | None
    stops: StopCheck | None
    vectors: VectorMetrics | None = None
    own_vectors: VectorMetrics | None = None

    @property
    def is_probed(self) -> bool:
        """Whether the probe was run whole, and gave numbers."""
        return bool(self.fidelity) and all(score.finite for score in self.fidelity)


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Judges the artifacts of one checkpoint, whose own run on the probe is `checkpoint`. `texts` are what their
    tokenizers were given, `chats` the ids of those that their templates were.
    """

    graph: WeightGraph
    checkpoint: Own
    texts: Sequence[EncodedPrompt]
    chats: Sequence[str]
    steps: Steps

    def gates(self, run: Run, stored: Stored) -> list[GateResult]:
        """Every gate but those that a team sets."""
        gates = self._tokenizer(run.outcome)
        if run.stops is not None:
            gates += judge_stops(run.stops, self.graph)
        if stored.errors:
            gates.append(judge_weights(stored.errors))
        if (measured := run.metrics or run.vectors) is not None:
            gates.append(judge_finite(measured))
        if run.is_probed and stored.unread:
            gates.append(judge_unread(run.fidelity, stored.floor))
        elif run.is_probed:
            gates += judge_execution(run.fidelity, stored.floor)
            gates += judge_experts(run.experts, stored.floor)
            gates += judge_ranks(run.fidelity, stored.floor)
        if run.cache is not None:
            gates += judge_cache(run.cache, self._cache_floor(stored))
        if stored.errors and not stored.unread:
            gates.append(self._format(stored))
        return gates

    def explained(
        self, gates: Sequence[GateResult], run: Run, stored: Stored
    ) -> tuple[list[GateResult], Location | None, str]:
        """The gates, where a failed artifact's weights lose the model, and which known mistake its runtime makes.

        What is moved more than rounding explains, but not so far that it must be a fault, is one if a mistake explains
        it: a gate more.
        """
        failed = {gate.part for gate in gates if not gate.passed}
        own, floor, prompts = stored.own, stored.floor, [prompt.token_ids for prompt in self.checkpoint.prompts]
        if stored.unread:
            return list(gates), None, ""
        if failed:
            self.steps.reach(Step("tracing the loss"))
        is_lost = failed & {Part.WEIGHTS, Part.EXECUTION, Part.FORMAT}
        location = locate(self.graph, own.graph, prompts) if is_lost and self.graph.is_at_hand else None
        if not run.is_probed or not (Part.EXECUTION in failed or is_suspicious(run.fidelity, floor)):
            return list(gates), location, ""
        allowed = ROOM[floor.arithmetic] * floor.metrics.mean + LEAST
        mistake = explain(own.graph, prompts, run.probe_logits, allowed=allowed)
        if not mistake or Part.EXECUTION in failed:
            return list(gates), location, mistake
        source = "its logits are nearer than the right"
        return [*gates, at_most("known_mistakes", 1, 0, Part.EXECUTION, mistake, source)], location, mistake

    def _tokenizer(self, outcome: Outcome) -> list[GateResult]:
        gates = []
        if outcome.encoded is not None:
            found = zip(self.texts, outcome.encoded, strict=True)
            wrong = [prompt.id for prompt, ids in found if not prompt.is_encoded_as(ids)]
            gates.append(_none_of("texts_encoded_otherwise", wrong, "every id equal"))
        if outcome.rendered is not None:
            expected = {prompt.id: prompt.text for prompt in self.texts}
            rendered = zip(self.chats, outcome.rendered, strict=True)
            wrong = [prompt for prompt, text in rendered if expected[prompt] != text]
            gates.append(_none_of("chats_rendered_otherwise", wrong, "every character equal"))
        return gates

    def _cache_floor(self, stored: Stored) -> Distance:
        """What pieces and batches of prompts may change: of weights that cannot be read, what rounding does to the
        checkpoint's. Pieces may send a token of a mixture to another expert, which no order of additions on the probe
        need show: in float32 they are held to what 16 bits do.
        """
        if stored.unread:
            return distance(self.checkpoint, Arithmetic.FLOAT16)
        is_exact = stored.floor.arithmetic is Arithmetic.FLOAT32
        return distance(stored.own, Arithmetic.FLOAT16) if is_exact and self.graph.config.is_mixture else stored.floor

    def _format(self, stored: Stored) -> GateResult:
        """Whether the weights are as good as their format. Of a tensor that is further off than the quant's encoder makes
        it, what it costs: the divergence of the stored weights against that of the encoder's own, on the probe.
        """
        gate = judge_format(stored.errors)
        if gate.passed:
            return gate
        as_run = replace(self.graph, config=stored.own.graph.config)
        stock = as_format_makes_it(as_run, stored.decoded, stored.planned)
        expected = Forward(stock).lazy_logits([prompt.token_ids for prompt in self.checkpoint.prompts])
        rows = zip(self.checkpoint.logits, stored.own.logits, expected, strict=True)
        measure = measure_of(self.graph.config)
        pairs = [(measure.of(right, held), measure.of(right, made)) for right, held, made in rows]
        kld, usual = (float(np.concatenate(each).mean()) for each in zip(*pairs, strict=True))
        _, error = mean_and_error([held - made for held, made in pairs])
        allowed = usual + max(_ERRORS * (error if error == error else 0.0), _AS_GOOD * usual) + LEAST
        source = (
            f"what the quant's own encoder makes of this checkpoint, and {_ERRORS:g} standard errors; {gate.sentence}"
        )
        return at_most(f"format_{measure.name}", kld, allowed, Part.FORMAT, gate.where, source)


def planned_encodings(target: Target, artifact: Artifact, graph: WeightGraph) -> Encodings:
    """What the artifact's quant gives each weight of this checkpoint; empty where its name says nothing to us."""
    if artifact.is_recognised:
        return {}
    options = {key: value for key, value in artifact.options.items() if key not in _UNPLANNED}
    try:
        written = target.as_written(replace(artifact, entry={**artifact.entry, "options": options}))
        plan = written.plan(graph, written.base_of(artifact.quant))
    except LfmConvertError:
        return {}
    return {address: tensor.encoding for tensor in plan.tensors for address in tensor.addresses}


def _none_of(name: str, wrong: Sequence[str], source: str) -> GateResult:
    return at_most(name, len(wrong), 0, Part.TOKENIZER, ", ".join(wrong[:3]), source)
