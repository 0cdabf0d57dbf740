from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.validate import reference
from lfm_convert.validate.prompts import EncodedPrompt, Prompt
from lfm_convert.validate.reference import compute_reference


def test_batches_do_not_change_the_logits(
    dense_graph: WeightGraph, prompts: tuple[Prompt, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = [EncodedPrompt(prompt.id, prompt.ids) for prompt in prompts]
    monkeypatch.setattr(reference, "BATCH_TOKENS", 40)  # four batches
    found = compute_reference(dense_graph, encoded, tmp_path)
    expected, _ = Forward(dense_graph).prefill([prompt.ids for prompt in prompts])
    for index, logits in enumerate(expected):
        np.testing.assert_allclose(found.logits(index)[:], logits, atol=1e-4)
