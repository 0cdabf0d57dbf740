"""What a verdict rests on: what ended a run, what was not judged, and the sentences that say so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..graph.roles import Address
from ..graph.tensor import TensorView
from ..targets.target import Artifact, NotJudged, Target
from .budgets import BudgetCheck
from .gates import Failure, GateResult, Part
from .jobs import Outcome, Status
from .results import ArtifactResult, Verdict

NOT_AT_HAND = "the checkpoint is not at hand"
ENDED = {Status.LATE: Failure.LATE, Status.TOO_LARGE: Failure.TOO_LARGE}


def not_judged(unread: str, *, is_at_hand: bool) -> Mapping[Part, str]:
    """The parts that a verdict does not rest on, and why."""
    if not is_at_hand:
        return dict.fromkeys((Part.WEIGHTS, Part.FORMAT), NOT_AT_HAND)
    return dict.fromkeys((Part.WEIGHTS, Part.EXECUTION), unread) if unread else {}


def notes_of(artifact: Artifact, unread: str, *, has_any: bool, is_at_hand: bool) -> tuple[str, ...]:
    """What a verdict does not rest on."""
    found = ["no manifest: provenance unknown"] if artifact.is_recognised else []
    if not is_at_hand:
        found.append(f"weights and format are not judged: {NOT_AT_HAND}, its kept run is")
    parts = "execution, and weights in part, are" if has_any else "weights and execution are"
    return (*found, f"{parts} not judged: {unread}") if unread else tuple(found)


def decide(outcome: Outcome, gates: Sequence[GateResult]) -> tuple[Verdict, str]:
    """The verdict and the sentence that explains it."""
    failed = [gate.sentence for gate in gates if not gate.passed]
    if failed or outcome.status is Status.FAILED or outcome.status in ENDED:
        found = Verdict.FAIL
    else:
        found = Verdict.SKIPPED if outcome.status is Status.SKIPPED else Verdict.PASS
    return found, "; ".join(filter(None, [outcome.message, *failed]))


def foreign_result(artifact: Artifact, why: str, checks: tuple[BudgetCheck, ...]) -> ArtifactResult:
    """The result of an artifact that is not run, since the reference is not what it was made from."""
    return ArtifactResult(
        artifact=artifact,
        backend="",
        verdict=Verdict.FAIL,
        size_bytes=artifact.size_bytes,
        budgets=checks,
        is_foreign=True,
        message=why,
    )


def decoded_weights(target: Target, artifact: Artifact) -> tuple[Mapping[Address, TensorView], str]:
    """The weights of an artifact that can be read, and why the others cannot; empty if all can."""
    try:
        return target.read(artifact), ""
    except NotJudged as error:
        return error.decoded, str(error)
