"""What a release would do, and what that takes, without doing any of it."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .estimates import Cost, cost_of
from .planning import site_of, steps_of
from .prepared import Preparation
from .site import Step


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """One step: `is_left` says that nothing is to do."""

    step: Step
    cost: Cost
    is_left: bool


@dataclass(frozen=True, kw_only=True)
class Forecasts:
    """All steps of a release, and what those that are to do take together; `free` is None of an output in a store.

    Units: seconds, bytes.
    """

    steps: Sequence[Forecast]
    free: int | None

    @property
    def to_do(self) -> list[Forecast]:
        return [each for each in self.steps if not each.is_left]

    @property
    def seconds(self) -> float:
        return sum(each.cost.seconds for each in self.to_do)

    @property
    def memory(self) -> int:
        """The most that one step holds: they are done one after the other."""
        return max((each.cost.memory for each in self.to_do), default=0)

    @property
    def disk(self) -> int:
        return sum(each.cost.disk for each in self.to_do)

    def to_json(self) -> dict[str, Any]:
        steps = [
            {"kind": each.step.kind, "name": each.step.name, "is_left": each.is_left, **each.cost.to_json()}
            for each in self.steps
        ]
        total = {"seconds": round(self.seconds, 1), "memory_bytes": self.memory, "disk_bytes": self.disk}
        return {"steps": steps, "to_do": total, "free_bytes": self.free}


def forecast(preparation: Preparation, *, publishes: bool = False) -> Forecasts:
    """What is left to do of a release. Writes nothing."""
    site = site_of(preparation)
    left: dict[Step, bool] = {}
    steps = steps_of(site, publishes=publishes)
    for step in steps:
        known = all(left[need] for need in step.needs if not need.on_demand)
        left[step] = known and not step.on_demand and step.is_done()
    for step in (step for step in steps if step.on_demand):  # nobody needs it who has nothing to do
        left[step] = all(left[other] for other in steps if step in other.needs)
    found = [
        Forecast(step=step, cost=cost_of(step, preparation, site.state.seconds), is_left=left[step]) for step in steps
    ]
    existing = next(path for path in (preparation.out, *preparation.out.absolute().parents) if path.exists())
    return Forecasts(steps=found, free=shutil.disk_usage(existing).free if preparation.output.is_here else None)
