from __future__ import annotations

import io
import math
import random
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from lfm_convert._version import __version__
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.budgets import BudgetCheck
from lfm_convert.validate.chart import NARROW, WIDE, Box, Chart, Frame, by_target, draw, place_labels
from lfm_convert.validate.gate_words import gate_words
from lfm_convert.validate.gates import at_most
from lfm_convert.validate.layer_bars import bars_of_loss, bars_of_weights
from lfm_convert.validate.localize import LayerError, Location, Recovery
from lfm_convert.validate.metrics import Metrics, Worst
from lfm_convert.validate.probes import CacheCheck
from lfm_convert.validate.report import percent, print_table, ratio, write_html
from lfm_convert.validate.results import (
    ArtifactResult,
    Continuation,
    Excerpt,
    GreedyCheck,
    Occasion,
    Report,
    Verdict,
    describe_environment,
)
from lfm_convert.validate.weights import TensorError
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
        "gates": (at_most("line_kld", kld, 0.2),),
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
    failed = _result("q4f16", verdict=Verdict.FAIL, message="line_kld is 0.3, limit at most 0.2")
    large = _result(
        "F16",
        size=2_340_000_000,
        budgets=(BudgetCheck("size", "phone", 2_340_000_000, 2_000_000_000, ""),),
    )
    page = _page(_report(_result(), failed, large, _skipped()), tmp_path)
    tags = _Tags(page).tags
    assert tags.count("figure") == 1 and tags.count("section") == 4
    opened = [text.split(">", 1)[0] for text in page.split("<details")[1:] if "<h3>" in text.split("</summary>")[0]]
    assert opened == [" open", " open", " open", ""], "what is not good comes first, and is open"
    for text in (
        "2 of 4 artifacts pass, 1 is over budget",
        "line_kld is 0.3",
        "pip install it",
        "zh-tea",
        " encore<mark> hier</mark>",
        "83.33 %",
        "2.34 GB",
        "Layer 1 is the first that drops",
        "93%",
        "Your line, max-kld: how far the predictions are from the checkpoint&#39;s, on average.",
    ):
        assert text in page
    assert not re.search(r"(src|href)=|https?://|@import|url\(", page)  # self-contained


@pytest.mark.parametrize("kld", [float("nan"), 0.0])
def test_a_page_without_a_usual_number_renders(tmp_path: Path, kld: float) -> None:
    page = _page(_report(_result(kld=kld)), tmp_path)
    assert ("<figure" in page) == (kld == 0.0)
    assert ("not finite" in page) == (kld != 0.0)


def test_a_page_of_skipped_artifacts_has_no_chart(tmp_path: Path) -> None:
    assert "<figure" not in _page(_report(_skipped()), tmp_path)


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


def _draw(results: list[ArtifactResult], frame: Frame = WIDE) -> Chart:
    chart = draw(by_target(results), frame)
    assert chart is not None and len(chart.points) == len(results)
    return chart


def _assert_legible(chart: Chart) -> None:
    """No label touches another, a mark or an edge; nothing lies outside the picture."""
    boxes, plot = [point.box for point in chart.points], chart.frame.plot
    assert not any(a.touches(b) for i, a in enumerate(boxes) for b in boxes[:i])
    assert not any(box.touches(Box(p.x - 5, p.y - 5, p.x + 5, p.y + 5)) for box in boxes for p in chart.points)
    assert all(plot.holds(box) for box in boxes)
    assert all(plot.left <= p.x <= plot.right and plot.top <= p.y <= plot.bottom for p in chart.points)
    assert 0 < plot.left < plot.right < chart.frame.width and 0 < plot.top < plot.bottom < chart.frame.height
    # A letter is 6.6 units wide: ticks are centred on their place.
    assert all(t.position + 3.3 * len(t.label) < chart.frame.width for t in chart.x_ticks)


@pytest.mark.parametrize("frame", [WIDE, NARROW])
def test_a_few_artifacts_are_named(frame: Frame) -> None:
    sizes, klds = [690, 840, 1250, 2340, 4680], [0.13, 0.035, 0.002, 1.5e-4, 2e-12]
    chart = _draw(
        [_result(f"Q{i}_K_M", n * 10**6, kld) for i, (n, kld) in enumerate(zip(sizes, klds, strict=True))], frame
    )
    _assert_legible(chart)
    assert [p.label for p in chart.points] == [f"Q{i}_K_M" for i in range(5)] and not chart.is_numbered


@pytest.mark.parametrize("frame", [WIDE, NARROW])
@pytest.mark.parametrize("spread", [1.0, 0.1, 0.0])
def test_labels_of_forty_artifacts_touch_nothing(frame: Frame, spread: float) -> None:
    """`spread` 0: all of one size and one divergence."""
    rng = random.Random(7)
    results = [
        _result(f"quant_{i}", int(7e8 * 8 ** (spread * rng.random())), 0.1 * 1e-4 ** (spread * rng.random()))
        for i in range(40)
    ]
    chart = _draw(results, frame)
    _assert_legible(chart)
    assert chart == _draw(list(reversed(results)), frame)
    if chart.is_numbered:
        assert [p.label for p in chart.points] == [str(n) for n in range(1, 41)]


def test_numbers_are_those_of_the_table(tmp_path: Path) -> None:
    results = [_result(f"quant_{i}", 7 * 10**8 - i) for i in range(40)]
    page = _page(_report(*results), tmp_path)
    assert "Numbers are those of the table." in page
    assert re.search(r'number">1</td>\s*<td class="name"[^>]*>.*<b>quant_39</b>', page)
    assert "<title>1. model-quant_39.gguf: 700 MB" in page


def test_artifacts_are_grouped_by_target_and_sorted_by_size() -> None:
    made = [("onnx", "q8", 9), ("gguf", "Q8_0", 8), ("onnx", "q4", 5), ("gguf", "Q4_0", 4)]
    results = [replace(_result(q, n), artifact=replace(_result(q).artifact, target=t)) for t, q, n in made]
    groups = by_target(results)
    assert {t: [r.artifact.quant for r in found] for t, found in groups.items()} == {
        "gguf": ["Q4_0", "Q8_0"], "onnx": ["q4", "q8"],
    }  # fmt: skip
    assert [p.mark for p in _draw(results).points] == [0, 0, 1, 1]


def test_more_labels_than_room_still_draw() -> None:
    plot = Box(0, 0, 100, 100)
    placed = place_labels([(50.0, 50.0)] * 60, ["label"] * 60, plot, radii=[5.0] * 60, n_rings=24)
    assert len(placed) == 60 and None in placed
    small = replace(NARROW, plot=Box(44, 10, 150, 60))
    chart = draw(by_target([_result(f"q{i}") for i in range(60)]), small)
    assert chart is not None and all(small.plot.holds(p.box) for p in chart.points)


def test_a_single_point_has_both_scales() -> None:
    chart = _draw([_result()])
    assert len(chart.x_ticks) >= 2 and len(chart.y_ticks) >= 2


def test_bars_tell_which_layer_loses() -> None:
    layers = (LayerError(0, 30.0, 20.0), LayerError(1, 8.0, 6.0), LayerError(2, 7.0, 140.0))
    bars = bars_of_loss(
        Location(layers, 1, (Recovery(None, 0.3, 0.1), Recovery(1, 0.01, 0.93), Recovery(0, 0.4, -0.1)))
    )
    assert [(bar.name, bar.note, bar.is_marked) for bar in bars] == [
        ("0", "0%", False), ("1", "93%", True), ("2", "", False),
    ]  # fmt: skip
    # 20 dB is a tenth of noise, 6 dB a half; the highest bar is whole.
    assert [round(bar.share, 3) for bar in bars] == [0.2, 1.0, 0.0]


def test_bars_of_weights_show_the_worst_tensor_of_each_layer() -> None:
    errors = [TensorError("a", "ffn_up", 1, math.inf), TensorError("b", "ffn_up", 0, 0.2), TensorError("c", "embed", None, 0.1), TensorError("d", "ffn_down", 0, 0.05)]  # fmt: skip
    assert [(bar.name, bar.share) for bar in bars_of_weights(errors)] == [("outside", 0.5), ("0", 1.0), ("1", 1.0)]


def test_a_page_says_when_with_what_and_of_what(tmp_path: Path) -> None:
    entry = {"files": [{"path": "model-Q4_0.gguf", "bytes": 7, "sha256": "ab" * 32}]}
    result = _result()
    result = replace(result, artifact=replace(result.artifact, entry=entry), seconds=61.4)
    occasion = Occasion(suite="smoke", date="2026-11-26T10:00:00Z", checkpoint_sha256="cd" * 32)
    page = _page(replace(_report(result), occasion=occasion), tmp_path)
    head = page[page.index("<h1>") : page.index("<h2>Artifacts")]
    for text in ("2026-11-26T10:00:00Z", f"lfm-convert {__version__}", "suite smoke", "cdcdcdcdcdcd"):
        assert text in head
    assert "ab" * 32 in page and "compared in 61 s" in page
    assert "/artifacts" not in page


def test_off_a_terminal_the_table_is_plain_and_whole() -> None:
    stream = io.StringIO()
    report = _report(_result("a" * 120), _skipped())
    print_table(report, Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert len(lines) == 4
    assert lines[1].startswith("model-" + "a" * 120) and lines[1].endswith("–       pass")
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


def test_a_table_shows_both_verdicts_and_says_what_gates_look_at() -> None:
    stream = io.StringIO()
    over = BudgetCheck("size", "phone", 3, 2, "")
    failed = _result("q4", verdict=Verdict.FAIL, budgets=(over,), gates=(at_most("line_kld", 0.3, 0.2),), message="bad")
    print_table(_report(failed, _result(budgets=(over,))), Console(file=stream, width=80))
    lines = stream.getvalue().splitlines()
    assert lines[1].endswith("over    fail") and lines[2].endswith("over    pass")
    assert lines[3].startswith(
        "model-q4.gguf: fail, over the line the team set, over budget: bad; 3 B (3 bytes) is over the phone budget"
    )
    assert lines[4].startswith("model-Q4_0.gguf: pass, over budget: 3 B")
    assert lines[5] == f"  line_kld: {gate_words('line_kld')}"


def test_every_gate_has_a_sentence() -> None:
    """Every name that a gate is made with in the source of the validator."""
    source = "".join(path.read_text(encoding="utf-8") for path in (Path(__file__).parents[2] / "validate").glob("*.py"))
    names = set(re.findall(r"(?:at_most|at_least|_none_of)\(\s*\"([a-z_0-9]+)\"", source))
    names |= set(re.findall(r"\((?:at_most|at_least), \"([a-z_0-9]+)\"", source))
    assert len(names) > 12
    assert not [name for name in names if not gate_words(name)]
    for probe in ("stepwise", "chunked", "interleaved", "reset", "batch_left"):
        assert "otherwise" not in gate_words(f"cache_{probe}_kld")
    assert "at 97 of 100 positions" in gate_words("execution_kld_p97")
    assert gate_words("of_a_plug_in") == ""


def test_no_folder_is_told() -> None:
    said = "onnxruntime: Load model from /artifacts/my folder/a.onnx failed: '/tmp/x/y.data' not found; see https://a.b/c/d and/or 3/4"
    result = _result(message=said)
    result = replace(result, artifact=replace(result.artifact, folder=Path("/artifacts/my folder")))
    assert result.without_folders().message == (
        "onnxruntime: Load model from a.onnx failed: 'y.data' not found; see https://a.b/c/d and/or 3/4"
    )
