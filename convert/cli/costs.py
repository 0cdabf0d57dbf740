"""`lfm-convert calibrate MODEL --costs TARGETS -o STATISTICS`: what encodings cost, by statistics that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...graph.graph import WeightGraph
from ...graph.progress import Progress
from ...quantize.allotment.wanted import Wanted
from ...targets.target import get_target
from .. import pipeline
from ..several import shares


def measure_costs(graph: WeightGraph, targets: Sequence[str], statistics: Path, progress: Progress) -> list[str]:
    """Measures what is not known yet of targets by name; the names. Raises: as `pipeline.measure_costs`."""
    options = {"statistics": str(statistics)}
    chosen = [get_target(share.target).with_options(options) for share in shares(targets)]
    for target in chosen:
        pipeline.measure_costs(graph, target, [Wanted(base=target.auto_base).name], progress=progress)
    return [target.name for target in chosen]
