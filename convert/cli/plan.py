"""`lfm-convert plan MODEL --target T --quant Q`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import ExitCode
from ...graph.units import format_size
from ...targets.plans import Plan
from ...validate.budgets import BudgetCheck, Budgets
from ...validate.memory import plan_run_bytes
from ...validate.tables import print_rows
from .. import pipeline
from ..several import shares
from .adapter_options import adapter_options
from .budget_options import budget_options
from .console import Json, Model, Offline, Quant, Revision, Targets, output, print_json, watched
from .option_groups import grouped
from .target_options import target_options
from .trade_off import print_trade_off
from .tuning_options import Tuning, tuning_options

_HEADINGS = (
    "quant", "file", "size", "bytes", "tensor bytes", "tensors", "fallbacks", "memory to write", "memory to run",
)  # fmt: skip


@grouped(options=target_options, tuning=tuning_options, adapters=adapter_options, budgets=budget_options)
def plan(
    *,
    target: Targets,
    model: Model = None,
    quant: Quant = None,
    options: dict[str, Any],
    tuning: Tuning,
    adapters: Adapting,
    budgets: Budgets,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tensor would fall back.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Say what would be written, to the byte, without reading a weight; config.json is enough."""
    wanted = shares(target, quant, {**options, **tuning.options}, max_bytes=budgets.max_size, tune=tuning.what)
    with watched() as progress:
        graph = pipeline.open_model(
            model, revision=revision, offline=offline, weights=False, adapters=adapters, progress=progress
        )
    plans: list[Plan] = []
    checks: list[tuple[BudgetCheck, ...]] = []
    memory: list[int] = []
    for share in wanted:
        held_to = share.budgets(budgets)
        for each in pipeline.plan(graph, target=share.target, quant=share.quants, options=share.options):
            if strict:
                each.refuse_fallbacks()
            plans.append(each)
            checks.append(held_to.check_plan(graph.config, each))
            memory.append(plan_run_bytes(graph.config, each, held_to.context))
    fits = all(check.passed for found in checks for check in found)
    code = ExitCode.OK if fits else ExitCode.BUDGET
    if as_json:
        objects = [
            {**each.to_json(), "run_bytes": run, "budgets": [check.to_json() for check in found]}
            for each, run, found in zip(plans, memory, checks, strict=True)
        ]
        print_json({"plans": objects})
        return code
    output.print(f"{graph.name}: {graph.n_parameters:,} parameters, {graph.config.n_layers} layers")
    print_rows(output, _HEADINGS, list(map(_row, plans, memory)), texts=("file",))
    for each in plans:
        for fallback in each.fallbacks:
            output.print(
                f"{each.quant}: '{fallback.tensor}' as {fallback.used} instead of {fallback.wanted}: {fallback.reason}"
            )
    for note in dict.fromkeys(note for each in plans for note in each.notes):
        output.print(note)
    for each in plans:
        print_trade_off(each, output)
    for each, found in zip(plans, checks, strict=True):
        _print_checks(each, found)
    return code


def _print_checks(each: Plan, found: tuple[BudgetCheck, ...]) -> None:
    for check in found:
        output.print(f"{each.quant}: {check.name}: {check.sentence}", soft_wrap=True)


def _row(plan: Plan, run_bytes: int) -> tuple[str, ...]:
    return (
        plan.quant,
        plan.main_file,
        format_size(plan.total_bytes),
        f"{plan.total_bytes:,}",
        f"{plan.tensor_bytes:,}",
        str(len(plan.tensors)),
        str(len(plan.fallbacks)),
        format_size(plan.peak_memory_bytes()),
        format_size(run_bytes),
    )
