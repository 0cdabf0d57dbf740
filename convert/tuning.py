"""Codes of artifacts that are tuned by a text before they are written: what is tuned, and where it is kept meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.progress import SILENT, Progress
from ..graph.roles import Address, Role
from ..quantize.allotment.wanted import CODES
from ..quantize.encoding import Encoding
from ..quantize.statistics.statistics import Statistics, open_statistics
from ..quantize.tuning.memory import Room, room_for, tuning_bytes
from ..quantize.tuning.store import Store
from ..quantize.tuning.tune import METHOD, can_tune, refuse_too_little, tune
from ..quantize.tuning.tuned import announced_graph, tuned_graph
from ..targets.lossy import planned
from ..targets.plans import Plan
from ..targets.target import Target

# Below an artifact's folder: what is tuned of an artifact that is not there yet, for the next run to go on with.
_FOLDER = ".lfm-tuning"


@dataclass(frozen=True)
class CodeTuning:
    """Tunes the codes of plans of one target and graph."""

    target: Target
    graph: WeightGraph
    statistics: Statistics
    room: Room
    folder: Path = Path()
    progress: Progress = SILENT
    _wanted: dict[str, Mapping[Address, Encoding]] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def of(
        cls, target: Target, graph: WeightGraph, *, jobs: int = 1, max_memory: int | None = None, **how: Any
    ) -> Self:
        """By the statistics that the target is given, within a limit of memory.

        Raises: UsageError for none, for too little text or memory; as `open_statistics`.
        """
        if target.statistics is None:
            raise UsageError(f"--tune={CODES} needs --statistics FOLDER, as lfm-convert calibrate writes it")
        statistics = open_statistics(Path(target.statistics), graph)
        refuse_too_little(statistics.chunks)
        room = room_for(graph, statistics.n_tokens, jobs=jobs, max_memory=max_memory)
        return cls(target, graph, statistics, room, **how)

    def announce(self, plan: Plan) -> Plan:
        """The plan as it will be with tuned codes. Raises: UsageError where no tensor can have any."""
        chosen = self._wanted[plan.quant] = self._chosen(plan)
        if not chosen:
            raise UsageError(f"--tune: {plan.target} {plan.quant} stores no matrix in codes that can be tuned")
        announced = planned(self.target, announced_graph(self.graph, chosen, self._about), plan.quant)
        return replace(announced, tuning_memory_bytes=tuning_bytes(self.graph, self.statistics.n_tokens, self.room))

    @contextmanager
    def carry_out(self, announced: Plan) -> Iterator[Plan]:
        """The plan that was announced with its codes, which are forgotten once it is written; until then an interrupted
        run leaves them.

        Raises: as `tune`.
        """
        chosen = self._wanted[announced.quant]
        folder = self.folder / _FOLDER / f"{announced.target}-{announced.quant}"
        store = tune(self.graph, chosen, self.statistics, folder, room=self.room, progress=self.progress)
        plan = planned(self.target, tuned_graph(self.graph, store, self._about), announced.quant)
        yield replace(plan, notes=(*plan.notes, _summary(store)))
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    @property
    def _about(self) -> dict[str, Any]:
        return {**self.statistics.about, CODES: {"method": METHOD, "tokens": self.statistics.n_tokens}}

    def _chosen(self, plan: Plan) -> dict[Address, Encoding]:
        """The encodings of weights whose codes can be tuned and reach the artifact as they are."""
        weights = {each.address: each for each in self.graph.weights()}
        found: dict[Address, set[Encoding]] = {}
        for tensor in plan.tensors:
            for address in tensor.addresses:
                found.setdefault(address, set()).add(tensor.encoding)
        wanted = {
            address: encoding
            for address, (encoding, *others) in found.items()
            if not others and address in weights and can_tune(self.graph, weights[address], encoding)
        }
        if (Role.LM_HEAD, None) in found and self.graph.is_tied:  # stored apart: the table is looked up and no more
            wanted.pop((Role.EMBED, None), None)
        trial = planned(self.target, announced_graph(self.graph, wanted, self._about), plan.quant)
        lost = {address for tensor in trial.tensors if not tensor.passes for address in tensor.addresses}
        return {address: encoding for address, encoding in wanted.items() if address not in lost}


def _summary(store: Store) -> str:
    weights = store.weights.values()
    before, after = (sum(errors) for errors in ([w.stock_error for w in weights], [w.tuned_error for w in weights]))
    share = 100 * (after / before - 1) if before else 0.0
    return (
        f"codes of {len(weights)} weights are tuned: the squared error of what they give on the text is {share:+.0f} %"
    )
