"""Artifacts of the bundled models, made once a session: an export takes half a minute, whatever the model's size."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, Target, get_target

CONTEXT = 1024


@dataclass(frozen=True)
class Exported:
    """An artifact, what it was made from, the target configured as it was, and what the plan said of each file."""

    graph: WeightGraph
    target: Target
    artifact: Artifact
    predicted_bytes: list[int]

    def decoded(self) -> WeightGraph:
        """The graph with the artifact's weights."""
        return self.graph.with_weights(self.target.read(self.artifact))


def export(graph: WeightGraph, quant: str, folder: Path, **options: Any) -> Exported:
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    target = get_target("executorch").with_options({"context": CONTEXT, **options})
    plan = target.plan(graph, quant)
    folder.mkdir(parents=True, exist_ok=True)
    target.write(plan, graph, folder, Execution())
    for name, data in target.shared_files(graph, [plan]).items():
        (folder / name).write_bytes(data)
    path = folder / plan.main_file
    files = tuple(folder / file.path for file in plan.files)
    artifact = Artifact(path, folder, target.name, plan.quant, plan.class_name, files)
    return Exported(graph, target, artifact, [file.nbytes for file in plan.files])


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Exported]]:
    """The bundled model of a kind in a quant, with options of the target."""
    made: dict[Any, Exported] = {}

    def get(kind: str, quant: str, **options: Any) -> Exported:
        key = kind, quant, *sorted(options.items())
        if key not in made:
            folder = tmp_path_factory.mktemp("executorch")
            made[key] = export(open_graph(bundled.path(kind)), quant, folder, **options)
        return made[key]

    yield get
