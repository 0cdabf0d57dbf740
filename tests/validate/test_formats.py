from __future__ import annotations

import json
import math
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from lfm_convert.graph.errors import ExitCode, InputError, UsageError
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.baseline import Baseline, hold_to_baseline, load_baseline, update_baseline
from lfm_convert.validate.budgets import BudgetCheck
from lfm_convert.validate.formats import write_junit, write_markdown
from lfm_convert.validate.gate_words import gate_words
from lfm_convert.validate.gates import at_most
from lfm_convert.validate.lines import Lines, hold_to_lines, judge_lines, parse_fraction
from lfm_convert.validate.metrics import Metrics, PromptMean
from lfm_convert.validate.results import ArtifactResult, Fit, Held, Occasion, Report, Verdict

METRICS = Metrics(
    n_prompts=2, n_positions=200, finite=True, kld_mean=0.1, kld_se=0.01, kld_median=0.1, kld_p99=0.1, kld_p999=0.1,
    kld_max=0.1, same_top1=0.9, same_top1_se=0.01, top5_overlap=0.9, ppl_ratio=1.0, ppl_ratio_se=0.0,
    prob_change_mean=0.0, prob_change_rms=0.0, max_abs_logit=1.0, worst=(),
    prompts=(PromptMean("a", 100, 0.08, 0.9), PromptMean("b", 100, 0.12, 0.9)),
)  # fmt: skip


def _result(quant: str, verdict: Verdict, **fields: object) -> ArtifactResult:
    path = Path(f"model-{quant}.gguf")
    entry = {"files": [{"path": path.name, "bytes": 7, "sha256": "ab" * 32}]}
    artifact = Artifact(path, path.parent, "gguf", quant, "q4", (path,), entry)
    return ArtifactResult(artifact=artifact, backend="llama.cpp", verdict=verdict, size_bytes=10**6, **fields)


PASSED = _result("Q4_0", Verdict.PASS, metrics=METRICS, gates=(at_most("line_kld", 0.1, 0.2),), seconds=2.5)
FAILED = _result(
    "Q4_1", Verdict.FAIL, metrics=METRICS, gates=(at_most("line_kld", 0.3, 0.2),), message="line_kld is 0.3 <b>|</b>"
)
CRASHED = _result("Q5_0", Verdict.FAIL, gates=(at_most("stored_row", 0.1, 0.2),), message="the runtime crashed")
ABSENT = _result("Q8_0", Verdict.SKIPPED, message="pip install it")
OCCASION = Occasion(suite="smoke", date="2026-11-26T10:00:00Z", checkpoint_sha256="cd" * 32)
REPORT = Report("LFM2", (PASSED, FAILED, CRASHED, ABSENT), {}, occasion=OCCASION)


def test_junit_has_a_suite_an_artifact_and_a_case_a_gate(tmp_path: Path) -> None:
    write_junit(REPORT, tmp_path / "r.xml")
    suites = ElementTree.parse(tmp_path / "r.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["gguf Q4_0", "gguf Q4_1", "gguf Q5_0", "gguf Q8_0"]
    cases = [suite.findall("testcase") for suite in suites]
    assert [[case.get("name") for case in found] for found in cases] == [
        ["run", "line_kld"], ["run", "line_kld"], ["run", "stored_row"], ["run"],
    ]  # fmt: skip
    assert cases[0][0].find("failure") is None and cases[3][0].find("skipped") is not None
    failure = cases[1][1].find("failure")
    assert "limit at most 0.2" in failure.get("message") and failure.text == gate_words("line_kld")
    assert cases[2][0].find("failure").get("message") == "the runtime crashed"
    assert [suite.get("time") for suite in suites] == ["2.5", "0.0", "0.0", "0.0"]
    assert (cases[0][0].get("time"), suites[0].get("timestamp")) == ("2.5", "2026-11-26T10:00:00")
    properties = {each.get("name"): each.get("value") for each in suites[0].iter("property")}
    assert properties["suite"] == "smoke" and properties["model_sha256"] == "cd" * 32
    assert properties["sha256"] == "ab" * 32 and properties["path"] == "model-Q4_0.gguf"


def test_junit_has_a_case_a_budget(tmp_path: Path) -> None:
    over, fits = BudgetCheck("memory", "phone", 3, 2, "4,096 tokens"), BudgetCheck("size", "", 1, 2, "")
    write_junit(Report("LFM2", (replace(PASSED, budgets=(fits, over)),), {}), tmp_path / "r.xml")
    cases = ElementTree.parse(tmp_path / "r.xml").getroot().findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["run", "line_kld", "size", "phone memory"]
    assert [case.find("failure") is not None for case in cases] == [False, False, False, True]


def test_markdown_is_a_table_that_nothing_breaks(tmp_path: Path) -> None:
    write_markdown(REPORT, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("### LFM2: 1 of 4 artifacts pass")
    assert "2026-11-26T10:00:00Z · lfm-convert" in text and "suite smoke · checkpoint `cdcdcdcdcdcd`" in text
    assert "| ✅ | gguf Q4\\_0 | 1.00 MB | – | 0.1 ± 0.01 | 0.1 | 90.00 % | 1.0000 | `abababababab` |" in text
    assert "\\<b\\>\\|" in text


def test_markdown_of_many_is_folded(tmp_path: Path) -> None:
    gates = tuple(at_most(f"cache_{i}_kld", 1, 0) for i in range(20))
    bad = [
        replace(_result(f"bad{i}", Verdict.FAIL, gates=gates, message="x" * 4000), metrics=METRICS) for i in range(40)
    ]
    good = [replace(PASSED, artifact=replace(PASSED.artifact, quant=f"Q{i}")) for i in range(40)]
    write_markdown(Report("LFM2", (*good, *bad), {}), tmp_path / "r.md")
    lines = (tmp_path / "r.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and max(map(len, lines)) < 600
    rows = [line for line in lines if line.startswith("| ") and "artifact" not in line]
    assert all(row.startswith("| ❌") for row in rows) and len(rows) >= 15, "what fails comes first"
    assert f"… and {80 - len(rows)} artifacts more, of which 40 pass." in lines
    assert any("more with something to say" in line for line in lines)
    write_markdown(Report("LFM2", tuple(good), {}), tmp_path / "r.md")
    lines = (tmp_path / "r.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 60 and sum(line.startswith("| ✅") for line in lines) == 40


def test_budget_and_quality_are_two_verdicts(tmp_path: Path) -> None:
    over = (BudgetCheck("size", "phone", 3, 2, ""),)
    both, large = replace(FAILED, budgets=over), replace(PASSED, budgets=over)
    report = Report("LFM2", (both, large), {})
    assert report.exit_code is ExitCode.QUALITY
    assert replace(report, results=(large,)).exit_code is ExitCode.BUDGET
    assert replace(report, results=(replace(ABSENT, budgets=over),)).exit_code is ExitCode.BUDGET
    assert [(r.verdict, r.fit, r.is_good) for r in report.results] == [
        (Verdict.FAIL, Fit.OVER, False), (Verdict.PASS, Fit.OVER, False),
    ]  # fmt: skip
    found = [(row["verdict"], row["fit"]) for row in report.to_json()["artifacts"]]
    assert found == [("fail", "over"), ("pass", "over")]
    write_markdown(report, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert "| ❌⚠️ |" in text and "| ✅⚠️ |" in text and "1 of 2 artifacts pass, 2 are over budget" in text
    assert "fail, over the line the team set, over budget: line\\_kld is 0.3" in text


def test_a_baseline_holds_what_is_worse_than_it_was(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, REPORT)
    stored = load_baseline(path)
    assert list(stored.entries) == ["LFM2 | gguf | Q4_0 | llama.cpp"]  # what failed is no baseline
    again = hold_to_baseline(Report("LFM2", (PASSED,), {}), stored).results[0]
    assert again.verdict is Verdict.PASS and again.gates[-1].name == "kld_over_baseline"
    assert again.baseline is Held.HELD
    shifted = tuple(replace(p, kld_mean=p.kld_mean + 0.01) for p in METRICS.prompts)
    worse = replace(PASSED, metrics=replace(METRICS, kld_mean=0.11, prompts=shifted))
    held = hold_to_baseline(Report("LFM2", (worse,), {}), stored).results[0]
    assert held.verdict is Verdict.FAIL and "kld_over_baseline is 0.01" in held.message
    other = replace(PASSED, metrics=replace(METRICS, prompts=METRICS.prompts[:1]))
    with pytest.raises(InputError, match="other prompts"):
        hold_to_baseline(Report("LFM2", (other,), {}), stored)


def test_what_an_artifact_was_written_with_is_part_of_a_baseline(tmp_path: Path) -> None:
    options = {"imatrix": "of-today.gguf", "refine": True, "outfile": "x.gguf", "tensor_type": ["attn_v=q8_0"]}
    entry = {**PASSED.artifact.entry, "options": options}
    made = replace(PASSED, artifact=replace(PASSED.artifact, entry=entry))
    path = tmp_path / "baseline.json"
    update_baseline(path, Report("LFM2", (made,), {}))
    stored = load_baseline(path)
    assert list(stored.entries) == ['LFM2 | gguf | Q4_0, imatrix, refine, tensor_type=["attn_v=q8_0"] | llama.cpp']
    assert hold_to_baseline(Report("LFM2", (made,), {}), stored).results[0].baseline is Held.HELD
    assert hold_to_baseline(Report("LFM2", (PASSED,), {}), stored).results[0].baseline is Held.NO_ENTRY


def test_threads_are_no_part_of_a_baseline(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    made = replace(PASSED, backend="llama.cpp 1.0 CPU, 8 threads")
    update_baseline(path, Report("LFM2", (made,), {}))
    for threads in ("1 thread", "2 threads"):
        other = replace(PASSED, backend=f"llama.cpp 1.0 CPU, {threads}")
        held = hold_to_baseline(Report("LFM2", (other,), {}), load_baseline(path)).results[0]
        assert (held.baseline, held.message) == (Held.HELD, "")


def test_a_baseline_of_before_is_read_and_says_so(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    key = "LFM2 | gguf | Q4_0 | llama.cpp 1.0 CPU, {} threads"
    entries = {key.format(2): {"a": [9, 0.1]}, key.format(8): {"a": [9, 0.2]}, key.format(4): {"a": [9, 0.15]}}
    path.write_text(json.dumps({"schema": 1, "entries": entries}))
    stored = load_baseline(path)
    assert stored.entries == {"LFM2 | gguf | Q4_0 | llama.cpp 1.0 CPU": {"a": (9, 0.2)}}
    assert "was keyed by threads" in stored.note and "--update-baseline" in stored.note
    update_baseline(path, Report("LFM2", (), {}))
    assert load_baseline(path).entries == stored.entries and not load_baseline(path).note


def test_no_entry_is_no_silent_pass(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, REPORT)
    moved = Report("LFM2", (replace(PASSED, backend="llama.cpp 2"),), {})
    for stored in (load_baseline(path), Baseline()):  # an empty file has no entry either
        result = hold_to_baseline(moved, stored).results[0]
        assert (result.verdict, result.baseline) == (Verdict.PASS, Held.NO_ENTRY)
        assert "no baseline entry: the baseline has no 'LFM2 | gguf | Q4_0 | llama.cpp 2'" in result.message
        required = hold_to_baseline(moved, stored, require=True)
        assert required.exit_code is ExitCode.QUALITY and "baseline_entry is 0" in required.results[0].message
    report = hold_to_baseline(moved, Baseline())
    assert report.summary == "1 of 1 artifacts pass, 1 has no baseline entry"
    write_junit(report, tmp_path / "r.xml")
    cases = {each.get("name"): each for each in ElementTree.parse(tmp_path / "r.xml").getroot().iter("testcase")}
    assert cases["baseline_entry"].find("skipped").get("message") == "no baseline entry"


def test_lines_judge_what_the_report_shows() -> None:
    assert judge_lines(METRICS, Lines()) == [] and not Lines()
    gates = judge_lines(METRICS, Lines(max_kld=0.1, min_top1=0.91, max_ppl_change=0.0))
    assert [(gate.name, gate.passed) for gate in gates] == [
        ("line_kld", True), ("line_top1", False), ("line_ppl_change", True),
    ]  # fmt: skip
    (gate,) = judge_lines(replace(METRICS, kld_mean=math.nan), Lines(max_kld=1.0))
    assert not gate.passed
    report = hold_to_lines(REPORT, Lines(min_top1=0.91))
    assert [result.verdict for result in report.results] == [Verdict.FAIL] * 3 + [Verdict.SKIPPED]
    assert report.results[0].message == "line_top1 is 0.9, limit at least 0.91"
    assert report.results[3] == ABSENT


@pytest.mark.parametrize(
    "line",
    [{"max_kld": -0.1}, {"max_kld": math.nan}, {"max_kld": math.inf}, {"min_top1": 1.01}, {"min_top1": math.nan},
     {"max_ppl_change": -0.1}, {"max_ppl_change": 90.0}],
)  # fmt: skip
def test_a_line_that_means_nothing_is_refused(line: dict[str, float]) -> None:
    with pytest.raises(UsageError, match=next(iter(line)).replace("_", "-")):
        Lines(**line)


def test_a_fraction_may_be_in_percent() -> None:
    assert [parse_fraction(text) for text in ("0.9", "90%", " 90 % ", "5e-2")] == [0.9, 0.9, 0.9, 0.05]
    for text in ("", "%", "90%%", "90 percent", "a", "9%0"):
        with pytest.raises(UsageError, match="no fraction"):
            parse_fraction(text)


@pytest.mark.parametrize("content", ["", "[]", '{"schema": 9, "entries": {}}', '{"schema": 1, "entries": {"a": 3}}'])
def test_a_malformed_baseline_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "b.json").write_text(content)
    with pytest.raises(InputError, match="not a baseline file"):
        load_baseline(tmp_path / "b.json")


def test_updating_keeps_other_entries(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, REPORT)
    update_baseline(path, Report("LFM2-other", (PASSED,), {}))
    assert len(json.loads(path.read_text(encoding="utf-8"))["entries"]) == 2
