"""Every family as a Core ML package against the reference, run by the evaluator with the weights that the package stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.coreml.mil import Dtype
from lfm_convert.targets.coreml.piece import Piece
from lfm_convert.targets.coreml.runner import CoremlRunner
from lfm_convert.targets.target import get_target
from support.family_configs import small
from support.family_models import make_model
from targets.coreml.packages import check, make

from .test_reference_peers import PROMPT, VARIANTS

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


def test_packages_in_turn(tmp_path: Path) -> None:
    """A stream in float32 goes from one to the next."""
    graph = open_graph(make_model(tmp_path / "model", small("gemma-3-270m")))
    made = make(graph, "fp16", tmp_path / "out", context=CONTEXT, chunk=CHUNK, coreml_split=220_000)
    assert len(list((tmp_path / "out").glob("*.mlpackage"))) > 2
    check(made, PIECES)


def _loud(folder: Path) -> WeightGraph:
    """A Gemma whose feed-forwards add numbers beyond float16's largest."""
    graph = open_graph(make_model(folder, small("gemma-3-270m")))
    gains = {(w.role, w.layer): w.view for w in graph.weights() if w.role is Role.POST_FFN_NORM}
    loud = {key: ArrayTensor(view.name, view.read() * np.float32(6e4)) for key, view in gains.items()}
    return graph.with_weights(loud)


@pytest.mark.parametrize("stream", [Dtype.FLOAT32, Dtype.FLOAT16])
def test_streams_beyond_float16(stream: Dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Computed in halves wherever the package says so, as devices do; a stream in halves is the negative control."""
    monkeypatch.setattr(Piece, "stream", property(lambda self: stream))
    made = make(_loud(tmp_path / "model"), "fp16", tmp_path / "out", context=CONTEXT, chunk=CHUNK)
    expected = Forward(made.decoded()).prefill([PROMPT])[0][0]
    found = CoremlRunner(made.package, threads=1, precision="float16").logits(PROMPT)
    difference = np.abs(found - expected).max()
    assert difference < 0.05 if stream is Dtype.FLOAT32 else not difference < 0.5


def test_a_context_of_one_table(tmp_path: Path) -> None:
    graph = open_graph(make_model(tmp_path, small("Phi-4-mini")))
    plan = get_target("coreml").with_options({"chunk": CHUNK}).plan(graph, "fp16")
    assert "context 48, " in plan.notes[0]
    assert (
        plan.notes[-1]
        == "context at most 48 of the model's 512: longer texts turn by a table that the file does not have"
    )
    with pytest.raises(UsageError, match="--context 49: expected 2 to 48, beyond which texts turn by a table"):
        get_target("coreml").with_options({"context": 49, "chunk": CHUNK}).plan(graph, "fp16")
