"""The time an artifact may take grows with what it reads and multiplies."""

from __future__ import annotations

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.validate.prompts import EncodedPrompt
from lfm_convert.validate.time_limit import time_limit_s

SHORT, LONG = EncodedPrompt("short", (1,) * 10), EncodedPrompt("long", (1,) * 1010)


def test_it_grows_with_tokens_and_bytes(dense_graph: WeightGraph) -> None:
    least = time_limit_s(dense_graph, [SHORT], 0)
    assert least >= 600
    assert time_limit_s(dense_graph, [SHORT], 5 * 10**9) == pytest.approx(least + 100)
    more = time_limit_s(dense_graph, [LONG], 0) - least
    assert more == pytest.approx(2 * 1000 * dense_graph.n_parameters / 2.5e9)


def test_of_experts_those_that_are_chosen_count(moe_graph: WeightGraph) -> None:
    mixture = moe_graph.config.mixture
    assert mixture is not None
    experts = sum(w.view.n_rows * w.view.n_cols for w in moe_graph.weights() if w.role.value.startswith("expert_"))
    more = time_limit_s(moe_graph, [LONG], 0) - time_limit_s(moe_graph, [SHORT], 0)
    met = more * 2.5e9 / 2000
    assert met < moe_graph.n_parameters
    assert met == pytest.approx(moe_graph.n_parameters - experts * (1 - mixture.top_k / mixture.n_experts), rel=0.01)
