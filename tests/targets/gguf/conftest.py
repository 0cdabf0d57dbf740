"""What the GGUF tests share: writing a quant of a graph, and random graphs of any config."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.convert.model.lfm2 import open_graph
from lfm_convert.convert.stream import Execution
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.target import Artifact
from support.checkpoints import make_checkpoint

WriteQuant = Callable[[WeightGraph, str], Artifact]
MakeGraph = Callable[..., WeightGraph]


@pytest.fixture
def write_quant(tmp_path: Path) -> WriteQuant:
    """Writes a quant of a graph into a folder of its own."""

    def write(graph: WeightGraph, quant: str) -> Artifact:
        plan = TARGET.plan(graph, quant)
        folder = tmp_path / "artifacts" / quant
        folder.mkdir(parents=True)
        TARGET.write(plan, graph, folder, Execution())
        path = folder / plan.main_file
        return Artifact(path, folder, TARGET.name, plan.quant, plan.class_name, (path,))

    return write


@pytest.fixture
def make_graph(tmp_path: Path) -> MakeGraph:
    """The graph of a random checkpoint with this config."""

    def make(config: dict[str, Any], **options: Any) -> WeightGraph:
        return open_graph(make_checkpoint(tmp_path / "LFM2-Test", config, **options))

    return make
