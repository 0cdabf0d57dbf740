"""Writes artifacts straight through a target, for tests that are not about publishing."""

from __future__ import annotations

from pathlib import Path

from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, Target, get_target

# By how much a file may miss its plan: a program's bytes are not known before it is lowered.
_SLACK = {".pte": 0.01}


def write_artifact(
    graph: WeightGraph, target: str | Target, quant: str, folder: Path, run: Execution | None = None
) -> Artifact:
    """Plans and writes one artifact with its shared files; returns what the manifest would say of it."""
    chosen = get_target(target) if isinstance(target, str) else target
    plan = chosen.plan(graph, quant)
    folder.mkdir(parents=True, exist_ok=True)
    chosen.write(plan, graph, folder, run or Execution(jobs=2))
    for name, data in chosen.shared_files(graph, [plan]).items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    files = tuple(folder / file.path for file in plan.files)
    for file in plan.files:
        n_bytes = (folder / file.path).stat().st_size
        slack = _SLACK.get(Path(file.path).suffix, 0.0)
        assert abs(n_bytes - file.nbytes) <= slack * file.nbytes, f"{file.path}: planned {file.nbytes} bytes"
    return Artifact(folder / plan.main_file, folder, chosen.name, plan.quant, plan.class_name, files)
