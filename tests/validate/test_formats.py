from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
from lfm_convert.convert.errors import InputError
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.baseline import hold_to_baseline, load_baseline, update_baseline
from lfm_convert.validate.budgets import BudgetCheck
from lfm_convert.validate.formats import write_junit, write_markdown
from lfm_convert.validate.gates import at_most
from lfm_convert.validate.metrics import Metrics, PromptMean
from lfm_convert.validate.results import ArtifactResult, Report, Verdict

METRICS = Metrics(
    n_prompts=2, n_positions=200, finite=True, kld_mean=0.1, kld_se=0.01, kld_median=0.1, kld_p99=0.1, kld_p999=0.1,
    kld_max=0.1, same_top1=0.9, same_top1_se=0.01, top5_overlap=0.9, ppl_ratio=1.0, ppl_ratio_se=0.0,
    prob_change_mean=0.0, prob_change_rms=0.0, max_abs_logit=1.0, worst=(),
    prompts=(PromptMean("a", 100, 0.08, 0.9), PromptMean("b", 100, 0.12, 0.9)),
)  # fmt: skip


def _result(quant: str, verdict: Verdict, **fields: object) -> ArtifactResult:
    path = Path(f"model-{quant}.gguf")
    artifact = Artifact(path, path.parent, "gguf", quant, "q4", (path,))
    return ArtifactResult(artifact=artifact, backend="llama.cpp", verdict=verdict, size_bytes=10**6, **fields)


PASSED = _result("Q4_0", Verdict.PASS, metrics=METRICS, gates=(at_most("kld_mean", 0.1, 0.2),))
FAILED = _result(
    "Q4_1", Verdict.FAIL, metrics=METRICS, gates=(at_most("kld_mean", 0.3, 0.2),), message="kld_mean is 0.3 <b>|</b>"
)
CRASHED = _result("Q5_0", Verdict.FAIL, gates=(at_most("weight_rms", 0.1, 0.2),), message="the runtime crashed")
ABSENT = _result("Q8_0", Verdict.SKIPPED, message="pip install it")
REPORT = Report("LFM2", (PASSED, FAILED, CRASHED, ABSENT), {})


def test_junit_has_a_suite_an_artifact_and_a_case_a_gate(tmp_path: Path) -> None:
    write_junit(REPORT, tmp_path / "r.xml")
    suites = ElementTree.parse(tmp_path / "r.xml").getroot().findall("testsuite")
    assert [suite.get("name") for suite in suites] == ["gguf Q4_0", "gguf Q4_1", "gguf Q5_0", "gguf Q8_0"]
    cases = [suite.findall("testcase") for suite in suites]
    assert [[case.get("name") for case in found] for found in cases] == [
        ["kld_mean"], ["kld_mean"], ["weight_rms", "run"], ["run"],
    ]  # fmt: skip
    assert cases[0][0].find("failure") is None and cases[3][0].find("skipped") is not None
    assert "limit at most 0.2" in str(cases[1][0].find("failure").get("message"))
    assert cases[2][1].find("failure").get("message") == "the runtime crashed"


def test_junit_has_a_case_a_budget(tmp_path: Path) -> None:
    over, fits = BudgetCheck("memory", "phone", 3, 2, "4,096 tokens"), BudgetCheck("size", "", 1, 2, "")
    write_junit(
        Report("LFM2", (replace(PASSED, budgets=(fits, over), verdict=Verdict.BUDGET),), {}), tmp_path / "r.xml"
    )
    cases = ElementTree.parse(tmp_path / "r.xml").getroot().findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["kld_mean", "size", "phone memory"]
    assert [case.find("failure") is not None for case in cases] == [False, False, True]


def test_markdown_is_a_table_that_nothing_breaks(tmp_path: Path) -> None:
    write_markdown(REPORT, tmp_path / "r.md")
    text = (tmp_path / "r.md").read_text(encoding="utf-8")
    assert text.startswith("### LFM2: 1 of 4 artifacts pass")
    assert "| ✅ | gguf Q4\\_0 | 1.00 MB | – | 0.1 ± 0.01 | 0.1 | 90.00 % | 1.0000 |" in text
    assert "\\<b\\>\\|" in text


def test_a_baseline_holds_what_is_worse_than_it_was(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    update_baseline(path, REPORT)
    stored = load_baseline(path)
    assert list(stored) == ["LFM2 | gguf | Q4_0 | llama.cpp"]  # what failed is no baseline
    again = hold_to_baseline(Report("LFM2", (PASSED,), {}), stored).results[0]
    assert again.verdict is Verdict.PASS and again.gates[-1].name == "kld_over_baseline"
    shifted = tuple(replace(p, kld_mean=p.kld_mean + 0.01) for p in METRICS.prompts)
    worse = replace(PASSED, metrics=replace(METRICS, kld_mean=0.11, prompts=shifted))
    held = hold_to_baseline(Report("LFM2", (worse,), {}), stored).results[0]
    assert held.verdict is Verdict.FAIL and "kld_over_baseline is 0.01" in held.message
    moved = hold_to_baseline(Report("LFM2", (replace(PASSED, backend="llama.cpp 2"),), {}), stored).results[0]
    assert moved.verdict is Verdict.PASS and "no entry 'LFM2 | gguf | Q4_0 | llama.cpp 2'" in moved.message
    other = replace(PASSED, metrics=replace(METRICS, prompts=METRICS.prompts[:1]))
    with pytest.raises(InputError, match="other prompts"):
        hold_to_baseline(Report("LFM2", (other,), {}), stored)


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
