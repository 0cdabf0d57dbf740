"""Plans of a source whose weights are codes already: which of them go on unchanged, and which are rounded again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..quantize.allotment.wanted import read_wanted
from .allotting import allotted
from .plans import Plan, TensorPlan
from .target import Target

_EXACT = "F32"


def planned(target: Target, graph: WeightGraph, quant: str) -> Plan:
    """The plan of a quant, whose encodings are allotted if its name says so; of a quantised source with what that means
    for it, of tuned codes with what they are tuned by.

    Raises: UsageError for what the target cannot say.
    """
    if graph.config.vectors is not None and not target.gives_vectors:
        raise UsageError(f"{target.name} has no {graph.config.vectors.name}: choose another target")
    wanted = read_wanted(quant)
    plan = target.plan(graph, quant) if wanted is None else allotted(target, graph, wanted)
    if graph.tuned:
        plan = replace(plan, tuned={**plan.tuned, **graph.tuned})
    if graph.quantised_as is None:
        return plan
    notes = (
        f"from {graph.quantised_as}: artifacts are compared with the weights that it decodes to",
        _fate(graph.quantised_as, plan.tensors),
    )
    return replace(plan, quantised_as=graph.quantised_as, notes=(*notes, *plan.notes))


def _fate(source: str, tensors: Sequence[TensorPlan]) -> str:
    """How many of the tensors that have codes keep them, stay exact as floats, or are rounded once more."""
    coded = [tensor for tensor in tensors if tensor.view.stored_as or tensor.view.grid]
    if not coded:
        return f"no type has the codes of {source}: whatever is not float32 is rounded again"
    kept = [tensor for tensor in coded if tensor.passes]
    exact = [tensor for tensor in coded if not tensor.passes and tensor.encoding.name == _EXACT]
    rounded = [tensor for tensor in coded if not tensor.passes and tensor.encoding.name != _EXACT]
    said = f"of {len(coded)} tensors with codes {len(kept)} {'goes' if len(kept) == 1 else 'go'} unchanged"
    said += f", {len(exact)} {_are(exact)} decoded to float32" if exact else ""
    if not rounded:
        return f"{said}: nothing is lost beyond {source}"
    types = Counter(tensor.encoding.name for tensor in rounded)
    shown = ", ".join(f"{n} as {name}" for name, n in types.most_common(4))
    return f"{said}, {len(rounded)} {_are(rounded)} rounded again ({shown}), such as '{rounded[0].name}'"


def _are(tensors: Sequence[TensorPlan]) -> str:
    return "is" if len(tensors) == 1 else "are"
