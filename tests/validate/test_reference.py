from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.model.forward import Forward
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.validate import reference
from lfm_convert.validate.prompts import EncodedPrompt, Prompt
from lfm_convert.validate.reference import compute_reference, greedy_runs


def test_batches_do_not_change_the_logits(
    dense_graph: WeightGraph, prompts: tuple[Prompt, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded = [EncodedPrompt(prompt.id, prompt.ids) for prompt in prompts]
    monkeypatch.setattr(reference, "_BATCH_BYTES", 40 * 512 * 4)  # forty tokens: four batches
    found = compute_reference(dense_graph, encoded, tmp_path, greedy_prompts=[], n_greedy=4)
    expected, _ = Forward(dense_graph).prefill([prompt.ids for prompt in prompts])
    for index, logits in enumerate(expected):
        np.testing.assert_allclose(found.logits(index), logits, atol=1e-4)


def test_a_batched_greedy_run_is_each_prompts_own(dense_graph: WeightGraph, prompts: tuple[Prompt, ...]) -> None:
    forward = Forward(dense_graph)
    chosen = [prompt.ids for prompt in prompts[:4]]
    free = [forward.generate(ids, max_new_tokens=6) for ids in chosen]
    assert [list(run.tokens) for run in greedy_runs(forward, chosen, n=6, stop=())] == free
    stop = (free[0][2],)
    stopped = greedy_runs(forward, chosen, n=6, stop=stop)
    assert [list(run.tokens) for run in stopped] == [forward.generate(i, max_new_tokens=6, stop=stop) for i in chosen]
    assert all(len(run.tokens) == len(run.gaps) and min(run.gaps) >= 0 for run in stopped)
