"""What the GGUF tests share: writing a quant of a graph, and random graphs of any config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact
from support.checkpoints import make_checkpoint

WriteQuant = Callable[..., Artifact]
MakeGraph = Callable[..., WeightGraph]


@pytest.fixture
def write_quant(tmp_path: Path) -> WriteQuant:
    """Writes a quant of a graph, with options of the target, into a folder of its own."""

    def write(graph: WeightGraph, quant: str, **options: Any) -> Artifact:
        target = TARGET.with_options(options)
        plan = target.plan(graph, quant)
        folder = tmp_path / "artifacts" / f"{quant}-{len(list(tmp_path.glob('artifacts/*')))}"
        folder.mkdir(parents=True)
        target.write(plan, graph, folder, Execution())
        files = tuple(folder / file.path for file in plan.files)
        return Artifact(folder / plan.main_file, folder, TARGET.name, plan.quant, plan.class_name, files)

    return write


@pytest.fixture
def make_graph(tmp_path: Path) -> MakeGraph:
    """The graph of a random checkpoint with this config."""

    def make(config: dict[str, Any], **options: Any) -> WeightGraph:
        return open_graph(make_checkpoint(tmp_path / "LFM2-Test", config, **options))

    return make
