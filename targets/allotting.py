"""Plans whose encodings are allotted: to each weight the one that pays most for its bytes, by a calibration's statistics.

    candidates of the target -> their costs, measured once and kept -> knapsack -> the target's own plan, to the byte

A plan's files are a little more than its tensors, and by how much depends on what is chosen: room is given or taken
until the plan itself, with every header, is as large as it may be.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from ..graph.dtypes import Float32
from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.progress import SILENT, Progress
from ..graph.roles import Address, Role
from ..graph.units import exact_size, format_size
from ..quantize.allotment.allotment import Allotment
from ..quantize.allotment.costs import Asked, losses
from ..quantize.allotment.kept import KeptCosts, read_costs
from ..quantize.allotment.solve import Group, least_bytes, solve, total
from ..quantize.allotment.wanted import BITS, Wanted
from ..quantize.imatrix import IMATRIX_FILE, read_importance
from ..quantize.statistics.statistics import Statistics, open_statistics
from .candidates import Alike, candidates
from .options import options_of
from .plans import Plan
from .target import Target

_IMATRIX = "imatrix"
_TABLE, _HEAD = (Role.EMBED, None), (Role.LM_HEAD, None)
# Weights whose costs are kept together: an interrupted run goes on after those that are.
_KEPT_TOGETHER = 8
# Plans that are tried for one: the second is nearly always the last.
_TRIES = 8
# Points of the trade-off beside the chosen one, from the least to the most that weights can take.
_POINTS = 9


@dataclass(frozen=True)
class _Allotting:
    """What there is to choose from. `target` is as it plans the named quant, `fixed` are bytes that no choice changes."""

    target: Target
    graph: WeightGraph
    wanted: Wanted
    plan: Plan
    alikes: Sequence[Alike]

    @property
    def is_apart(self) -> bool:
        """Whether the table of a tied model is stored twice, for each of its uses."""
        return self.graph.is_tied and any((tensor.role, tensor.layer) == _HEAD for tensor in self.plan.tensors)

    @property
    def fixed(self) -> int:
        return self.plan.total_bytes - sum(alike.sizes[alike.planned] for alike in self.alikes)

    @cached_property
    def max_bytes(self) -> int:
        """What the plan may take: the size of a named quant is that of its own encodings under the tuned one's name."""
        if self.wanted.max_bytes is None:
            return self.planned([alike.planned for alike in self.alikes]).total_bytes
        return int(self.wanted.max_bytes / (1 + self.target.size_error))

    def planned(self, packed: Sequence[int]) -> Plan:
        """The target's plan of a choice of each."""
        chosen = zip(self.alikes, packed, strict=True)
        encodings = {address: alike.encodings[i].name for alike, i in chosen for address in alike.addresses}
        allotment = Allotment(self.wanted.name, self.wanted.word, encodings)
        return self.target.with_encodings(allotment).plan(self.graph, self.target.base_of(self.wanted.name))

    def refuse_too_little(self) -> None:
        """Raises: UsageError if not even the smallest choices fit."""
        packed = [min(range(len(alike.sizes)), key=lambda i: (alike.sizes[i], i)) for alike in self.alikes]
        least = self.planned(packed).total_bytes
        if least > self.max_bytes:
            raise UsageError(
                f"{self.target.name} {self.wanted.name}: {self.graph.name} takes at least {format_size(least)} "
                f"({least} bytes), with every weight in its smallest encoding"
            )


def allotted(target: Target, graph: WeightGraph, wanted: Wanted) -> Plan:
    """The plan that a name asks for. Reads no weight.

    Raises: UsageError for a target without statistics or choices, a size that is too small, and costs that nobody has
    measured yet; as `open_statistics`.
    """
    statistics, allotting = _opened(target, graph, wanted)
    kept = _kept(statistics, allotting)
    if any(True for _ in _unmeasured(allotting, statistics, kept)):
        raise UsageError(
            f"{target.name} {wanted.name}: {kept.path} does not have what each encoding costs: lfm-convert calibrate "
            f"MODEL --costs {target.name} -o {statistics.folder} measures it, and so does the first conversion"
        )
    return _best(allotting, statistics, kept)


def measure_costs(
    target: Target,
    graph: WeightGraph,
    wanted: Wanted,
    *,
    jobs: int = 1,
    progress: Progress = SILENT,
) -> KeptCosts:
    """Measures what is not kept yet of what a plan needs to be allotted, and keeps it in the statistics' folder.

    Raises: as `allotted`, before any weight is read; InputError for weights that cannot be read; DiskError.
    """
    statistics, allotting = _opened(target, graph, wanted)
    kept = _kept(statistics, allotting)
    missing = list(_unmeasured(allotting, statistics, kept))
    if missing:
        progress.start(f"{target.name} costs", sum(each.view.nbytes for _, each in missing), "bytes")
    for start in range(0, len(missing), _KEPT_TOGETHER):
        part = missing[start : start + _KEPT_TOGETHER]
        found = losses([each for _, each in part], statistics, jobs=jobs, advance=progress.advance)
        for (address, each), values in zip(part, found, strict=True):
            kept.add(address, dict(zip((encoding.name for encoding in each.encodings), values, strict=True)))
        kept.save()
    return kept


def _opened(target: Target, graph: WeightGraph, wanted: Wanted) -> tuple[Statistics, _Allotting]:
    if target.statistics is None:
        raise UsageError(
            f"quant '{wanted.name}' goes by what errors cost: --statistics FOLDER, as lfm-convert calibrate writes it"
        )
    statistics = open_statistics(Path(target.statistics), graph)
    weighing = _weighing(target, statistics)
    base = weighing.base_of(wanted.name)
    plan = weighing.plan(graph, base)
    alikes = [
        alike
        for alike in candidates(weighing, graph, plan)
        if all(statistics.gradients(_measured_as(address, graph)) is not None for address in alike.addresses)
    ]
    if not alikes:
        raise UsageError(f"{target.name} {wanted.name}: there is nothing of {base} that could be stored otherwise")
    allotting = _Allotting(weighing, graph, wanted, plan, alikes)
    allotting.refuse_too_little()
    return statistics, allotting


def _weighing(target: Target, statistics: Statistics) -> Target:
    """The target with the statistics' importance of columns, where its encoders weigh by one.

    Raises: UsageError for another file of importance.
    """
    if _IMATRIX not in options_of(target):
        return target
    if getattr(target, _IMATRIX) is not None:
        raise UsageError("--imatrix: statistics have an importance of their own: give one of them")
    if target.weighs_refined_only and not getattr(target, "refine", False):
        return target
    return target.with_options({_IMATRIX: str(statistics.folder / IMATRIX_FILE)})


def _kept(statistics: Statistics, allotting: _Allotting) -> KeptCosts:
    name = allotting.target.name + ("-apart" if allotting.is_apart else "")
    return read_costs(statistics.folder, statistics.sha256, name)


def _unmeasured(allotting: _Allotting, statistics: Statistics, kept: KeptCosts) -> Iterator[tuple[Address, Asked]]:
    """The weights of which costs are not kept, with the encodings that lack them."""
    graph = allotting.graph
    weights = {weight.address: weight for weight in graph.weights()}
    importance = read_importance(statistics.folder / IMATRIX_FILE, graph.config.family)
    for alike in allotting.alikes:
        for address in alike.addresses:
            missing = tuple(each for each in alike.encodings if kept.get(address, each.name) is None)
            if missing:
                source = _measured_as(address, graph)
                view = weights[source].view
                columns = importance.of_weight(source, view.shape)
                gradients = _of_one_use(address, statistics) if allotting.is_apart else None
                yield (
                    address,
                    Asked(address=source, view=view, encodings=missing, importance=columns, gradients=gradients),
                )


def _of_one_use(address: Address, statistics: Statistics) -> Float32 | None:
    """The gradients of a tied table that is looked up, or of the head that is stored apart from it; None of others."""
    if address == _TABLE:
        return statistics.lookups
    both = statistics.gradients(_TABLE)
    return both - statistics.lookups if address == _HEAD and both is not None else None


def _measured_as(address: Address, graph: WeightGraph) -> Address:
    """Where graph and statistics have a weight: a tied head is the token table."""
    return _TABLE if address == _HEAD and graph.is_tied else address


def _best(allotting: _Allotting, statistics: Statistics, kept: KeptCosts) -> Plan:
    groups = [_group(alike, kept) for alike in allotting.alikes]
    room = allotting.max_bytes - allotting.fixed
    found: tuple[float, Plan, tuple[int, ...]] | None = None
    tried: set[tuple[int, ...]] = set()
    for _ in range(_TRIES):
        packed = solve(groups, max(room, least_bytes(groups)))
        plan = allotting.planned(packed)
        n_bytes, loss = total(groups, packed)
        if plan.total_bytes <= allotting.max_bytes and (found is None or loss < found[0]):
            found = loss, plan, packed
        if packed in tried:
            break
        tried.add(packed)
        spare = allotting.max_bytes - plan.total_bytes
        room = n_bytes + spare
    if found is None:  # the smallest choices do fit
        raise UsageError(f"{allotting.wanted.name}: nothing of at most {exact_size(allotting.max_bytes)} was found")
    loss, plan, packed = found
    return replace(plan, **_told(allotting, statistics, groups, packed, plan))


def _group(alike: Alike, kept: KeptCosts) -> Group:
    """Of each choice that can hold the values its bytes and its loss, summed over the weights."""
    found = [
        sum(kept.get(address, encoding.name) or 0.0 for address in alike.addresses) for encoding in alike.encodings
    ]
    return Group(alike.sizes, tuple(found))


def _told(
    allotting: _Allotting, statistics: Statistics, groups: Sequence[Group], packed: Sequence[int], plan: Plan
) -> dict[str, Any]:
    """What the plan says of itself."""
    n_bytes, loss = total(groups, packed)
    named = total(groups, [alike.planned for alike in allotting.alikes])[1]
    base = allotting.target.base_of(allotting.wanted.name)
    bits = {
        "base": base,
        "max_bytes": allotting.max_bytes,
        "predicted_kld": loss,
        "predicted_kld_of_base": named,
        "base_bytes": allotting.plan.total_bytes,
        "trade_off": _trade_off(groups, plan.total_bytes - n_bytes, plan.total_bytes, loss),
    }
    note = (
        f"encodings are allotted by what their errors cost on {statistics.n_tokens:,} tokens: a divergence of {loss:.2g} "
        f"nats a token is predicted in {format_size(plan.total_bytes)}, of {base} {named:.2g} in "
        f"{format_size(allotting.plan.total_bytes)}"
    )
    return {"tuned": {**statistics.about, BITS: bits}, "notes": (note, *plan.notes)}


def _trade_off(groups: Sequence[Group], fixed: int, n_bytes: int, loss: float) -> list[dict[str, Any]]:
    """What other sizes would buy: bytes of all files, about, and the divergence that is predicted."""
    least, most = least_bytes(groups), sum(max(group.sizes) for group in groups)
    low, high = least + fixed, most + fixed
    rooms = [round(low * (high / low) ** (i / (_POINTS - 1))) - fixed for i in range(_POINTS)]
    points = {n_bytes: {"bytes": n_bytes, "predicted_kld": loss, "chosen": True}}
    for room in rooms:
        size, predicted = total(groups, solve(groups, max(room, least)))
        points.setdefault(size + fixed, {"bytes": size + fixed, "predicted_kld": predicted, "chosen": False})
    return [points[size] for size in sorted(points)]
