"""`lfm-convert plan MODEL --target T --quant Q`."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Any

import typer
from rich.table import Table

from ...graph.adapters.adapter import Adapting
from ...graph.errors import ExitCode
from ...graph.units import format_size
from ...targets.plans import Plan
from ...validate.budgets import BudgetCheck, Budgets
from ...validate.memory import plan_run_bytes
from .. import pipeline
from .adapter_options import adapter_options
from .budget_options import budget_options
from .console import Json, Model, Offline, Quant, Revision, Target, output, print_json, watched
from .option_groups import grouped
from .target_options import target_options


@grouped(options=target_options, adapters=adapter_options, budgets=budget_options)
def plan(
    *,
    target: Target,
    model: Model = None,
    quant: Quant = None,
    options: dict[str, Any],
    adapters: Adapting,
    budgets: Budgets,
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tensor would fall back.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Say what would be written, to the byte, without reading a weight; config.json is enough."""
    with watched() as progress:
        graph = pipeline.open_model(
            model, revision=revision, offline=offline, weights=False, adapters=adapters, progress=progress
        )
    plans = pipeline.plan(graph, target=target, quant=quant, options=options)
    for each in plans:
        if strict:
            each.refuse_fallbacks()
    budgets = replace(budgets, context=options.get("context", budgets.context))
    checks = [budgets.check_plan(graph.config, each) for each in plans]
    memory = [plan_run_bytes(graph.config, each, budgets.context) for each in plans]
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
    output.print(_table(plans, memory))
    for each in plans:
        for fallback in each.fallbacks:
            output.print(
                f"{each.quant}: '{fallback.tensor}' as {fallback.used} instead of {fallback.wanted}: {fallback.reason}"
            )
    for note in dict.fromkeys(note for each in plans for note in each.notes):
        output.print(note)
    for each, found in zip(plans, checks, strict=True):
        _print_checks(each, found)
    return code


def _print_checks(each: Plan, found: tuple[BudgetCheck, ...]) -> None:
    for check in found:
        output.print(f"{each.quant}: {check.name}: {check.sentence}", soft_wrap=True)


def _table(plans: tuple[Plan, ...], memory: list[int]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("quant", "file"):
        table.add_column(heading)
    for heading in ("size", "bytes", "tensor bytes", "tensors", "fallbacks", "memory to write", "memory to run"):
        table.add_column(heading, justify="right")
    for each, run in zip(plans, memory, strict=True):
        table.add_row(
            each.quant,
            each.main_file,
            format_size(each.total_bytes),
            f"{each.total_bytes:,}",
            f"{each.tensor_bytes:,}",
            str(len(each.tensors)),
            str(len(each.fallbacks)),
            format_size(each.peak_memory_bytes()),
            format_size(run),
        )
    return table
