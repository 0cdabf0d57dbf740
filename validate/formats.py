"""A report for machines and reviewers: JUnit XML for a build server, Markdown for a pull request."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..graph.units import format_size
from .chart import by_target
from .gate_words import gate_words
from .outputs import write_report
from .report import failed_gates, measured, measures, memory, short, verdict_words
from .results import ArtifactResult, Fit, Held, Report, Verdict

if TYPE_CHECKING:
    from junitparser import TestSuite

_MARKS = {Verdict.PASS: "✅", Verdict.FAIL: "❌", Verdict.SKIPPED: "⏭️"}
_BUDGET = "⚠️"
# Of a comment on a pull request, which is read beside others; what is longer is folded into a count.
MAX_LINES = 60
_MAX_SENTENCES, _MAX_WORDS = 16, 10
_MAX_LETTERS = 400  # of a sentence


def write_junit(report: Report, path: Path) -> None:
    """One suite an artifact; in it a case for the run, one a gate and one a budget. Raises: DiskError."""
    from junitparser import JUnitXml

    document = JUnitXml(report.model)
    for result in report.results:
        document.add_testsuite(_suite(report, result))
    document.time = sum(result.seconds or 0.0 for result in report.results)
    write_report(path, document.tostring().decode("utf-8"))  # type: ignore[no-untyped-call]


def _suite(report: Report, result: ArtifactResult) -> TestSuite:
    from junitparser import Failure, Skipped, TestCase, TestSuite

    name = result.title
    suite = TestSuite(name)
    suite.timestamp = report.occasion.date.removesuffix("Z")
    for key, value in (
        ("model", result.model or report.model),
        ("model_sha256", report.occasion.checkpoint_sha256),
        *((("model_quantised_as", report.occasion.quantised_as),) if report.occasion.quantised_as else ()),
        ("suite", report.occasion.suite),
        ("date", report.occasion.date),
        ("tool", report.occasion.tool),
        ("path", result.path),
        ("sha256", result.sha256),
        ("backend", result.backend),
        ("verdict", result.verdict.value),
        ("fit", result.fit.value),
        ("baseline", result.baseline.value),
    ):
        suite.add_property(key, value)
    run = TestCase("run", classname=name, time=result.seconds)
    if result.verdict is Verdict.SKIPPED:
        run.result = [Skipped(result.message)]
    elif (
        result.verdict is Verdict.FAIL and result.metrics is None and result.vectors is None
    ):  # the runtime did not get to the end
        run.result = [Failure(result.message, "run")]
    suite.add_testcase(run)
    for gate in result.gates:
        case = TestCase(gate.name, classname=f"{name}.{gate.part.value}")
        if not gate.passed:
            failure = Failure(gate.sentence, gate.part.value)
            failure.text = gate_words(gate.name)
            case.result = [failure]
        suite.add_testcase(case)
    if result.baseline is Held.NO_ENTRY and all(gate.name != "baseline_entry" for gate in result.gates):
        case = TestCase("baseline_entry", classname=f"{name}.quality")
        case.result = [Skipped("no baseline entry")]
        suite.add_testcase(case)
    for check in result.budgets:
        case = TestCase(f"{check.device} {check.name}".strip(), classname=f"{name}.budget")
        if not check.passed:
            case.result = [Failure(check.sentence, "budget")]
        suite.add_testcase(case)
    suite.time = result.seconds or 0.0
    return suite


def write_markdown(report: Report, path: Path) -> None:
    """The table, what failed first, and what there is to say, in `MAX_LINES` at most. Raises: DiskError."""
    occasion = report.occasion
    head = [
        f"### {escape(report.model)}: {report.summary}",
        "",
        f"{occasion.date} · {escape(occasion.tool)} · suite {escape(occasion.suite or '–')} · checkpoint "
        f"`{short(occasion.checkpoint_sha256)}`"
        + (f" from {escape(occasion.quantised_as)}" if occasion.quantised_as else ""),
        "",
        f"| | artifact | size | memory | {' | '.join(measures(report))} | sha256 |",
        "|---|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    ordered = [result for group in by_target(report.results).values() for result in group]
    ordered.sort(key=lambda result: (result.is_good, result.verdict is not Verdict.FAIL))
    said = [f"- `{r.label}`: {verdict_words(r)}: {_cut(escape(r.sentence))}" for r in ordered if r.sentence]
    said = _folded(said, _MAX_SENTENCES, "- … and {} more with something to say: see the full report")
    words = [f"- `{name}`: {gate_words(name)}" for name in failed_gates(report)]
    words = _folded(words, _MAX_WORDS, "- … and {} gates more")
    tail = [*([""] if said else []), *said, *(["", "What these gates look at:", ""] if words else []), *words]
    n_rows = MAX_LINES - len(head) - len(tail) - 2  # the line that counts the others, and one before it
    rows = [_row(result) for result in ordered]
    more = len(rows) - n_rows
    if more > 0:
        passed = sum(result.is_good for result in ordered[n_rows:])
        rows = [*rows[:n_rows], "", f"… and {more} artifacts more, of which {passed} pass."]
    write_report(path, "\n".join([*head, *rows, *tail]) + "\n")


def _folded(lines: Sequence[str], most: int, rest: str) -> list[str]:
    """So many lines at most, of which the last counts those that are left out."""
    return list(lines) if len(lines) <= most else [*lines[: most - 1], rest.format(len(lines) - most + 1)]


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_LETTERS else f"{text[:_MAX_LETTERS].rstrip(chr(92))} …"


def _row(result: ArtifactResult) -> str:
    numbers = measured(result, with_error=True)
    mark = f"{_MARKS[result.verdict]}{_BUDGET if result.fit is Fit.OVER else ''}"
    name = escape(result.title)
    size = format_size(result.size_bytes)
    cells = (mark, name, size, memory(result), *numbers, f"`{short(result.sha256)}`" if result.sha256 else "–")
    return f"| {' | '.join(cells)} |"


def escape(text: str) -> str:
    """Text in which Markdown and HTML find nothing of theirs."""
    for mark in "\\`*_[]<>|":
        text = text.replace(mark, f"\\{mark}")
    return text.replace("\n", " ")
