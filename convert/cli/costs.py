"""`lfm-convert calibrate MODEL --costs TARGETS -o STATISTICS`: what encodings cost, from statistics that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...graph.graph import WeightGraph
from ...graph.progress import Progress
from ...quantize.allotment.wanted import Wanted
from ...targets.target import get_target
from .. import pipeline
from ..several import shares
from .console import output, print_json


def measure_costs(
    graph: WeightGraph, targets: Sequence[str], statistics: Path, *, progress: Progress, as_json: bool
) -> int:
    """Measures what is not known yet of targets by name, and says so. Raises: as `pipeline.measure_costs`."""
    options = {"statistics": str(statistics)}
    chosen = [get_target(share.target).with_options(options) for share in shares(targets)]
    for target in chosen:
        pipeline.measure_costs(graph, target, [Wanted(base=target.auto_base).name], progress=progress)
    if as_json:
        print_json({"statistics": str(statistics), "costs": [target.name for target in chosen]})
    else:
        output.print(f"{statistics}: has what encodings cost of {', '.join(target.name for target in chosen)}")
    return 0
