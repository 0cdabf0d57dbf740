from __future__ import annotations

import io
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.budgets import BudgetCheck
from lfm_convert.validate.chart import Box, draw, place_labels
from lfm_convert.validate.gates import judge
from lfm_convert.validate.localize import LayerError, Location, Recovery
from lfm_convert.validate.metrics import Metrics, Worst
from lfm_convert.validate.probes import CacheCheck
from lfm_convert.validate.report import percent, print_table, ratio, write_html
from lfm_convert.validate.results import (
    ArtifactResult,
    Continuation,
    Excerpt,
    GreedyCheck,
    Report,
    Verdict,
    describe_environment,
)
from rich.console import Console

METRICS = Metrics(
    n_prompts=40, n_positions=2000, finite=True, kld_mean=0.11, kld_se=0.01, kld_median=0.05, kld_p99=0.9, kld_p999=1.5,
    kld_max=2.5, same_top1=0.8333, same_top1_se=0.01, top5_overlap=0.9, ppl_ratio=1.04, ppl_ratio_se=0.01,
    prob_change_mean=-0.01, prob_change_rms=0.1, max_abs_logit=3.0, worst=(Worst("zh-tea", 7, 15, 2.5),),
    distribution=(0,) * 20 + (5, 100, 900, 900, 95) + (0,) * 5,
)  # fmt: skip
HOSTILE = '<script>alert("x")</script>&[red]'


def _result(quant: str = "Q4_0", size: int = 700_000_000, kld: float = 0.11, **fields: Any) -> ArtifactResult:
    path = Path("/artifacts") / f"model-{quant}.gguf".replace("/", "")
    metrics = replace(METRICS, kld_mean=kld)
    values: dict[str, Any] = {
        "artifact": Artifact(path, path.parent, "gguf", quant, "q4", (path,)),
        "backend": "llama.cpp",
        "verdict": Verdict.PASS,
        "size_bytes": size,
        "metrics": metrics,
        "gates": tuple(judge(metrics, "q4", is_moe=False)),
        "cache": CacheCheck(()),
        "greedy": GreedyCheck(
            4, 2, 0.5, 0.01, (Continuation("fr-pluie", "Il pleut", " encore", " demain", " hier", 0.01),)
        ),
        "excerpts": (Excerpt("zh-tea", 7, "before", "this", "that", 2.5),),
        "location": Location((LayerError(0, 30.0, 30.0), LayerError(1, 8.0, 8.1)), 1, (Recovery(1, 0.01, 0.93),)),
    }
    return ArtifactResult(**{**values, **fields})


def _skipped() -> ArtifactResult:
    fields: dict[str, Any] = dict.fromkeys(("metrics", "cache", "greedy", "location"))
    return _result(
        "Q8_0", verdict=Verdict.SKIPPED, gates=(), backend="", message="pip install it", excerpts=(), **fields
    )


def _report(*results: ArtifactResult, model: str = "LFM2-350M") -> Report:
    return Report(model, results, describe_environment(threads=2))


class _Tags(HTMLParser):
    """The start tags of a page, checking that every other tag closes one."""

    _VOID = frozenset({"meta", "br", "line", "circle", "rect", "path"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        if tag not in self._VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self._VOID:
            assert self._open.pop() == tag


def _page(report: Report, folder: Path) -> str:
    write_html(report, folder / "report.html")
    return (folder / "report.html").read_text(encoding="utf-8")


def test_the_page_shows_every_artifact(tmp_path: Path) -> None:
    failed = _result("q4f16", verdict=Verdict.FAIL, message="kld_mean is 0.3, limit at most 0.2")
    large = _result(
        "F16",
        size=2_340_000_000,
        budgets=(BudgetCheck("size", "phone", 2_340_000_000, 2_000_000_000, ""),),
        verdict=Verdict.BUDGET,
    )
    page = _page(_report(_result(), failed, large, _skipped()), tmp_path)
    tags = _Tags(page).tags
    assert tags.count("svg") == 1 and tags.count("section") == 4
    for text in (
        "1 of 4 artifacts pass",
        "kld_mean is 0.3",
        "pip install it",
        "zh-tea",
        " encore<mark> hier</mark>",
        "83.33 %",
        "2.34 GB",
        "first drop",
    ):
        assert text in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)  # self-contained


@pytest.mark.parametrize("kld", [float("nan"), 0.0])
def test_a_page_without_a_usual_number_renders(tmp_path: Path, kld: float) -> None:
    page = _page(_report(_result(kld=kld)), tmp_path)
    assert ("<svg" in page) == (kld == 0.0)
    assert ("not finite" in page) == (kld != 0.0)


def test_a_page_of_skipped_artifacts_has_no_chart(tmp_path: Path) -> None:
    assert "<svg" not in _page(_report(_skipped()), tmp_path)


def test_hostile_names_are_text(tmp_path: Path) -> None:
    hostile = Artifact(Path(HOSTILE), Path(), HOSTILE, HOSTILE, "q4", ())
    excerpts = (Excerpt(HOSTILE, 0, HOSTILE, HOSTILE, HOSTILE, 1.0),)
    result = _result(artifact=hostile, backend=HOSTILE, message=HOSTILE, excerpts=excerpts)
    report = _report(result, model=HOSTILE)
    page = _page(report, tmp_path)
    assert "script" not in _Tags(page).tags
    stream = io.StringIO()
    print_table(report, Console(file=stream, width=300))
    assert "[red]" in stream.getvalue()  # no markup either


def test_twelve_labels_touch_nothing() -> None:
    sizes = [690, 700, 730, 760, 840, 900, 960, 1250, 2340, 2350, 4680, 4690]
    klds = [0.13, 0.125, 0.109, 0.21, 0.035, 0.155, 0.015, 0.002, 1.5e-4, 1.6e-5, 2e-12, 3e-12]
    results = [_result(f"Q{i}_K_M", n * 10**6, kld) for i, (n, kld) in enumerate(zip(sizes, klds, strict=True))]
    chart = draw(results)
    assert chart is not None and len(chart.points) == 12
    boxes = [point.box for point in chart.points]
    assert not any(a.touches(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.touches(Box(p.x, p.y, p.x, p.y)) for box in boxes for p in chart.points)
    plot = chart.plot
    assert all(plot.left <= p.x <= plot.right and plot.top <= p.y <= plot.bottom for p in chart.points)
    assert all(plot.left <= b.left and b.right <= plot.right for b in boxes)
    order = sorted(chart.points, key=lambda p: p.x)
    assert [p.label for p in order] == [f"gguf Q{i}_K_M" for i in range(12)]


def test_more_labels_than_room_still_draw() -> None:
    assert len(place_labels([(300.0, 200.0)] * 60, ["label"] * 60)) == 60


def test_a_single_point_has_both_scales() -> None:
    chart = draw([_result()])
    assert chart is not None and chart.x_ticks and len(chart.y_ticks) >= 2


def test_off_a_terminal_the_table_is_plain_and_whole() -> None:
    stream = io.StringIO()
    report = _report(_result("a" * 120), _skipped())
    print_table(report, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("model-" + "a" * 120) and lines[1].endswith("pass")
    assert lines[3] == "model-Q8_0.gguf: skipped: pip install it"
    assert "\x1b" not in stream.getvalue()


def test_on_a_terminal_verdicts_have_colour() -> None:
    stream = io.StringIO()
    print_table(_report(_result()), Console(file=stream, width=120, force_terminal=True, color_system="standard"))
    assert "\x1b[32mpass" in stream.getvalue()


def test_only_a_whole_is_a_hundred_percent() -> None:
    assert percent(0.99999) == "99.99 %"
    assert percent(1.0) == "100.00 %"
    assert percent(None) == ratio(None) == "–"
    assert ratio(1.00041) == "1.0004"
