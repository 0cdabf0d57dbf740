"""Artifacts that an older version wrote stay readable: their weights are those of the checkpoint they were made from.

The fixtures were written by the version of commit 3a47d1c, before manifests said where each part lies; Core ML's and
compressed-tensors' by the first that wrote these formats.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.artifacts import find_artifacts, verified
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.progress import SILENT
from lfm_convert.graph.roles import Role
from lfm_convert.targets.target import get_target, target_names

FIXTURES = Path(__file__).parents[1] / "fixtures" / "artifacts"
# Of a weight: the largest error of four bits in blocks, as a share of its largest value.
MAX_ERROR = 0.2


@pytest.mark.parametrize("target", target_names())
def test_an_older_artifact_is_read(target: str) -> None:
    (artifact,) = verified(find_artifacts(FIXTURES / target), SILENT)
    found = get_target(target).with_options(artifact.options).read(artifact)
    graph = open_graph(FIXTURES / "checkpoint")
    for weight in graph.weights():
        values, stored = weight.view.read(), found[weight.address].read()
        assert stored.shape == values.shape
        assert np.abs(stored - values).max() <= MAX_ERROR * np.abs(values).max(), weight.view.name
    assert set(found) - {weight.address for weight in graph.weights()} <= {(Role.LM_HEAD, None)}
