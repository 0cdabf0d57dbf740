"""Models that give vectors, run by the reference, against torch in float32."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from support.encoders import KINDS, make_encoder, torch_states

pytestmark = pytest.mark.peers

MAX_DIFFERENCE = 1e-4
_DRAWN = np.random.default_rng(11)
PROMPTS = [[1, *_DRAWN.integers(14, 512, n - 1).tolist()] for n in (1, 2, 3, 40, 150)]
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{kind: (kind, {}) for kind in KINDS},
    "wide convolution": ("embedding", {"conv_L_cache": 5}),
    "biased convolution": ("embedding", {"conv_bias": True}),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_states_equal_those_of_torch(variant: str, tmp_path: Path, record_property: Any) -> None:
    kind, fields = VARIANTS[variant]
    folder = make_encoder(tmp_path / "model", kind, **fields)
    forward = Forward(open_graph(folder))
    ours = forward.states(State(len(PROMPTS)), PROMPTS)
    theirs = torch_states(folder, PROMPTS)
    difference = max(float(np.abs(a - b).max()) for a, b in zip(ours, theirs, strict=True))
    record_property("largest difference", difference)
    assert difference <= MAX_DIFFERENCE


@pytest.mark.parametrize(
    ("said", "row"),
    [
        ({"pooling_mode": "cls"}, lambda rows: rows[0]),
        ({"pooling_mode_lasttoken": True}, lambda rows: rows[-1]),
        ({"pooling_mode": "mean"}, lambda rows: rows.mean(axis=0)),
    ],
)
def test_a_text_has_the_vector_that_its_pooling_says(said: dict[str, Any], row: Any, tmp_path: Path) -> None:
    folder = make_encoder(tmp_path / "model")
    (folder / "1_Pooling/config.json").write_text(json.dumps(said))
    forward = Forward(open_graph(folder))
    expected = row(torch_states(folder, PROMPTS[-1:])[0])
    (states,) = forward.states(State(1), PROMPTS[-1:])
    found = forward.vectors(states)
    assert found.shape == (1, 128)
    assert np.abs(found[0] - expected / np.linalg.norm(expected)).max() <= MAX_DIFFERENCE
