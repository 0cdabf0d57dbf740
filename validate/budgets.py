"""Budgets an artifact must fit: its size, its largest file, and what a class of devices has room for.

They are known before any weight is read, so that `plan` and `convert` hold a plan to them as `validate` does files.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph.config import ModelConfig
from ..graph.errors import BudgetError
from ..graph.units import format_size
from ..targets.plans import Plan
from ..targets.target import Artifact
from .memory import CONTEXT_TOKENS, plan_run_bytes, run_bytes


@dataclass(frozen=True, kw_only=True)
class DeviceClass:
    """What one kind of device has room for; None is no limit. Units: bytes, tokens.

    `targets` and `quants` name the artifacts it is meant to run; none named means all.
    """

    name: str
    max_size: int | None = None
    max_file_size: int | None = None
    max_memory: int | None = None
    context: int | None = None
    targets: tuple[str, ...] = ()
    quants: tuple[str, ...] = ()

    def takes(self, target: str, quant: str) -> bool:
        return (not self.targets or target in self.targets) and (not self.quants or quant in self.quants)


@dataclass(frozen=True)
class BudgetCheck:
    """One limit and what was found. `name` is size, file or memory, `device` the class that sets it, if one does."""

    name: str
    device: str
    value: int
    limit: int
    where: str

    @property
    def passed(self) -> bool:
        return self.value <= self.limit

    @property
    def sentence(self) -> str:
        whose = f"the {self.device} budget" if self.device else "the budget"
        what = f"{self.where}: " if self.where else ""
        relation = "is within" if self.passed else "is over"
        return f"{what}{_exact(self.value)} {relation} {whose} of {_exact(self.limit)}"

    def to_json(self) -> dict[str, Any]:
        fields = ("name", "device", "value", "limit", "where", "passed")
        return {field: getattr(self, field) for field in fields}


@dataclass(frozen=True, kw_only=True)
class Budgets:
    """All limits of one run. `context` is what memory is estimated for, where a device class does not say."""

    max_size: int | None = None
    max_file_size: int | None = None
    devices: Sequence[DeviceClass] = ()
    context: int = CONTEXT_TOKENS

    def check_artifact(self, config: ModelConfig, artifact: Artifact) -> tuple[BudgetCheck, ...]:
        """Every limit that is meant for an artifact on disk."""
        return self._check(artifact, artifact.sizes, lambda context: run_bytes(config, artifact, context))

    def check_plan(self, config: ModelConfig, plan: Plan) -> tuple[BudgetCheck, ...]:
        """The same of an artifact that is not written yet."""
        sizes = {file.path: file.nbytes for file in plan.files}
        return self._check(plan, sizes, lambda context: plan_run_bytes(config, plan, context))

    def refuse(self, config: ModelConfig, plans: Sequence[Plan]) -> None:
        """Raises: BudgetError naming every plan that is over a budget."""
        over = [
            f"{plan.target} {plan.quant}: {check.sentence}"
            for plan in plans
            for check in self.check_plan(config, plan)
            if not check.passed
        ]
        if over:
            raise BudgetError(f"{'; '.join(over)}; nothing was written")

    def _check(
        self, each: Artifact | Plan, sizes: Mapping[str, int], memory: Callable[[int], int]
    ) -> tuple[BudgetCheck, ...]:
        """`memory` gives bytes for a context of that many tokens."""
        own = DeviceClass(name="", max_size=self.max_size, max_file_size=self.max_file_size)
        largest = max(sizes, key=lambda name: sizes[name])
        total = sum(sizes.values())
        found = []
        for device in (own, *(device for device in self.devices if device.takes(each.target, each.quant))):
            context = device.context or self.context
            for name, value, limit, where in (
                ("size", total, device.max_size, ""),
                ("file", sizes[largest], device.max_file_size, largest),
                ("memory", memory(context) if device.max_memory else 0, device.max_memory, f"{context:,} tokens"),
            ):
                if limit is not None:
                    found.append(BudgetCheck(name, device.name, value, limit, where))
        return tuple(found)


UNLIMITED = Budgets()


def _exact(n_bytes: int) -> str:
    return f"{format_size(n_bytes)} ({n_bytes} bytes)"
