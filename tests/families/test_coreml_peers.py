"""Every family as a Core ML package against the reference, run by the evaluator with the weights that the package stores."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.graph.opening import open_graph
from support.family_configs import small
from support.family_models import make_model
from targets.coreml.packages import check, make

from .test_reference_peers import VARIANTS

pytestmark = pytest.mark.peers
pytest.importorskip("coremltools", reason='pip install "lfm-convert[coreml]"')

# Of the small models, up to which the first table of a long rope holds; windows are of 9 to 12.
CONTEXT, CHUNK = 48, 8
PIECES = [8, 3, 1, 1, 8, 8, 7, 1, 2, 5]


@pytest.mark.parametrize("variant", VARIANTS)
def test_fp16(variant: str, tmp_path: Path) -> None:
    name, fields = VARIANTS[variant]
    graph = open_graph(make_model(tmp_path / "model", small(name, **fields)))
    check(make(graph, "fp16", tmp_path / "out", context=CONTEXT, chunk=CHUNK), PIECES)


@pytest.mark.parametrize("name", ["gemma-3-270m", "Phi-4-mini", "Granite-3.1-1B-A400M"])
def test_int4(name: str, tmp_path: Path) -> None:
    graph = open_graph(make_model(tmp_path / "model", small(name)))
    check(make(graph, "int4", tmp_path / "out", context=CONTEXT, chunk=CHUNK), PIECES)
