"""What a watcher is told: the step by its name, no bar that stands still at its end, how long the rest may take."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_convert.convert.cli import console
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.progress import Progress
from lfm_convert.targets.target import Artifact
from lfm_convert.validate import parity
from lfm_convert.validate.jobs import load_step, save_step
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from lfm_convert.validate.steps import Step, Steps
from rich.console import Console
from support.fake_target import make_artifact


class Watch:
    """Everything that a progress is told: each bar's label, total and what it got to."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.bars: list[list[object]] = []
        self.progress = Progress(self._start, self._advance, self.notes.append)

    def _start(self, label: str, total: int, unit: str) -> None:
        self.bars.append([label, 0, total, unit])

    def _advance(self, amount: int) -> None:
        self.bars[-1][1] += amount


@pytest.fixture
def watch() -> Watch:
    return Watch()


def test_steps_name_the_artifact_and_what_is_left(watch: Watch) -> None:
    steps = Steps(watch.progress, 3)
    steps.reach(Step("prompts", 2, 4, "prompts"))
    steps.reach(Step("prompts", 4, 4, "prompts"))
    steps.begin_artifact("a.gguf")
    steps.reach(Step("stored weights"))
    steps.end_artifact(90)
    steps.begin_artifact("b.gguf")
    steps.reach(Step("stored weights"))
    steps.end_artifact(30)
    steps.begin_artifact("c.gguf")
    steps.reach(Step("prompts", 1, 4, "prompts"))
    assert watch.notes == [
        "running a.gguf, 1 of 3",
        "running b.gguf, 2 of 3, about 3 min left",
        "running c.gguf, 3 of 3, about 1 min left",
    ]
    assert watch.bars == [
        ["checkpoint: prompts", 4, 4, "prompts"],
        ["[1 of 3] a.gguf: stored weights", 0, 0, ""],
        ["[2 of 3] b.gguf: stored weights (about 3 min left)", 0, 0, ""],
        ["[3 of 3] c.gguf: prompts (about 1 min left)", 1, 4, "prompts"],
    ]


def test_a_worker_says_what_it_does(tmp_path: Path) -> None:
    assert load_step(tmp_path) is None
    step = Step("greedy text", 1, 4, "prompts")
    save_step(tmp_path, step)
    assert load_step(tmp_path) == step


@pytest.fixture
def labels(
    watch: Watch,
    dense_graph: WeightGraph,
    tiny_dense: Path,
    prompts: tuple[Prompt, ...],
    fake_runtime: str,
    tmp_path: Path,
) -> Callable[..., list[str]]:
    def labels(*, time_limit_s: float = 300, **fault: object) -> list[str]:
        artifact: Artifact = make_artifact(tmp_path, tiny_dense, **fault)
        options = {"prompts": prompts, "threads": 1, "find_target": fake_runtime, "progress": watch.progress}
        validate([artifact], dense_graph, time_limit_s=time_limit_s, **options)
        return [str(bar[0]) for bar in watch.bars]

    return labels


def test_every_step_of_a_validation_has_its_name(labels: Callable[..., list[str]], watch: Watch) -> None:
    found = labels(swap=True)
    assert found[:3] == ["checkpoint: prompts", "model.json: stored weights", "model.json: what rounding does"]
    assert "model.json: prompts" in found
    assert found[-2:] == ["model.json: tracing the loss", "checkpoint: greedy text"]
    bars = {str(label): bar for label, *bar in watch.bars}
    assert bars["checkpoint: prompts"] == bars["model.json: prompts"] == [7, 7, "prompts"]


def test_a_runtime_that_hangs_after_the_prompts_is_seen_where_it_does(
    labels: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Calls 1 to 7 are the prompts whole, whose texts end at once; the next are the cache's."""
    monkeypatch.setattr(parity, "N_GREEDY_TOKENS", 1)
    assert labels(time_limit_s=8, hang_at=9)[-1].startswith("model.json: cache, stepwise")


def test_a_bar_without_a_total_moves(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(console, "errors", Console(file=stream, force_terminal=True, width=120, color_system=None))
    with console.watched() as progress:
        progress.start("model: cache, stepwise", 0, "")
        progress.advance(1)
        progress.start("model: prompts", 68, "prompts")
        progress.advance(3)
    said = stream.getvalue()
    assert "model: cache, stepwise" in said or "model: prompts" in said
    assert "0 of 0" not in said
