"""How long one artifact may run before it counts as hung: long enough for its size on any machine of today."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.graph import WeightGraph
from ..graph.roles import Trait
from .prompts import EncodedPrompt

_LEAST_S = 600.0
# A slow disk, and a tenth of what a slow core multiplies: a runtime without kernels for a processor is no fault.
_BYTES_PER_S = 50e6
_PRODUCTS_PER_S = 2.5e9
# Prompts are run, and some of them again in other pieces.
_RUNS = 2


def time_limit_s(graph: WeightGraph, prompts: Sequence[EncodedPrompt], size_bytes: int) -> float:
    """Seconds for an artifact of a size in bytes: what the tokens of its prompts take at the very least speed."""
    n_tokens = sum(len(prompt.token_ids) for prompt in prompts)
    return _LEAST_S + size_bytes / _BYTES_PER_S + _RUNS * n_tokens * products_per_token(graph) / _PRODUCTS_PER_S


def products_per_token(graph: WeightGraph) -> float:
    """Multiplications a token: every weight that it meets, and of experts those that are chosen."""
    config, found = graph.config, 0.0
    for weight in graph.weights():
        size = weight.view.n_rows * weight.view.n_cols
        if weight.role.trait is Trait.EXPERTS:
            mixture = config.mixture
            size = size * mixture.top_k // mixture.n_experts if mixture else size
        found += size
    return found
