"""Every family in ExecuTorch against the reference: as torch runs the module, and as the runtime runs the file."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from support.family_configs import small
from support.family_models import make_model

from .test_reference_peers import VARIANTS

pytestmark = pytest.mark.peers
pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')

# Of the small models, up to which the first table of a long rope holds; windows are of 9 to 12.
CONTEXT = 48
PIECES = {"whole": [44], "steps": [1] * 16, "pieces": [10, 1, 1, 13, 9, 2, 8]}
TOKENS = np.random.default_rng(15).integers(8, 600, 44).tolist()


@pytest.mark.parametrize("variant", VARIANTS)
def test_module(variant: str, tmp_path: Path) -> None:
    """The module that is exported, each conversation from position 0: none leaves anything behind."""
    from targets.executorch.eager import EagerModel

    name, fields = VARIANTS[variant]
    graph = open_graph(make_model(tmp_path / "model", small(name, **fields)))
    model = EagerModel(graph, tmp_path / "out", context=CONTEXT)
    expected = Forward(graph).prefill([TOKENS])[0][0]
    for sizes in PIECES.values():
        ends = list(itertools.accumulate(sizes))
        pieces = [TOKENS[low:high] for low, high in itertools.pairwise([0, *ends])]
        np.testing.assert_allclose(model.logits(pieces), expected[np.array(ends) - 1], atol=1e-4)
