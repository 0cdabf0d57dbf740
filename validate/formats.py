"""A report for machines and reviewers: JUnit XML for a build server, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..convert.files import replace_text
from ..convert.units import format_size
from .report import memory, number, percent, ratio
from .results import ArtifactResult, Report, Verdict

if TYPE_CHECKING:
    from junitparser import TestSuite

_MARKS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.BUDGET: "⚠️", Verdict.SKIPPED: "⏭️"}


def write_junit(report: Report, path: Path) -> None:
    """One suite an artifact, one case a gate; an artifact that was not run is one skipped case. Raises: DiskError."""
    from junitparser import JUnitXml

    document = JUnitXml(report.model)
    for result in report.results:
        document.add_testsuite(_suite(result))
    replace_text(path, document.tostring().decode("utf-8"))  # type: ignore[no-untyped-call]


def _suite(result: ArtifactResult) -> TestSuite:
    from junitparser import Failure, Skipped, TestCase, TestSuite

    name = f"{result.artifact.target} {result.artifact.quant}"
    suite = TestSuite(name)
    suite.add_property("path", result.artifact.label)
    suite.add_property("backend", result.backend)
    for gate in result.gates:
        case = TestCase(gate.name, classname=f"{name}.{gate.part.value}")
        if not gate.passed:
            case.result = [Failure(gate.sentence, gate.part.value)]
        suite.add_testcase(case)
    for check in result.budgets:
        case = TestCase(f"{check.device} {check.name}".strip(), classname=f"{name}.budget")
        if not check.passed:
            case.result = [Failure(check.sentence, "budget")]
        suite.add_testcase(case)
    if result.verdict is Verdict.SKIPPED:
        case = TestCase("run", classname=name)
        case.result = [Skipped(result.message)]
        suite.add_testcase(case)
    elif result.verdict is Verdict.FAIL and result.metrics is None:  # the runtime did not get to the end
        case = TestCase("run", classname=name)
        case.result = [Failure(result.message, "run")]
        suite.add_testcase(case)
    return suite


def write_markdown(report: Report, path: Path) -> None:
    """The table and what failed. Raises: DiskError."""
    passed = sum(result.verdict is Verdict.PASS for result in report.results)
    lines = [
        f"### {report.model}: {passed} of {len(report.results)} artifacts pass",
        "",
        "| | artifact | size | memory | mean KLD | p99.9 | same top-1 | PPL ratio |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
        *(_row(result) for result in report.results),
        "",
        *(f"- `{result.artifact.label}`: {_escape(result.message)}" for result in report.results if result.message),
    ]
    replace_text(path, "\n".join(lines).rstrip("\n") + "\n")


def _row(result: ArtifactResult) -> str:
    metrics = result.metrics
    numbers: Sequence[str] = ("–",) * 4
    if metrics is not None:
        divergence = f"{number(metrics.kld_mean)} ± {number(metrics.kld_se)}"
        numbers = (divergence, number(metrics.kld_p999), percent(metrics.same_top1), ratio(metrics.ppl_ratio))
    name = f"{result.artifact.target} {result.artifact.quant}"
    cells = (_MARKS[result.verdict], _escape(name), format_size(result.size_bytes), memory(result), *numbers)
    return f"| {' | '.join(cells)} |"


def _escape(text: str) -> str:
    """Text in which Markdown and HTML find nothing of theirs."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
