"""The validator's prompts, and how far weights move what a graph says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Address
from lfm_convert.graph.tensor import TensorView
from lfm_convert.validate.metrics import position_kld
from lfm_convert.validate.prompts import encode_prompts, load_prompts


def prompts_of(graph: WeightGraph, max_tokens: int) -> list[Sequence[int]]:
    """The beginnings of the prompts as token ids."""
    encoded = encode_prompts(load_prompts(None), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
    return [prompt.token_ids[:max_tokens] for prompt in encoded]


class Reference:
    """A graph, its prompts, and its own logits of them."""

    def __init__(self, graph: WeightGraph, max_tokens: int) -> None:
        self.graph = graph
        self._prompts = prompts_of(graph, max_tokens)
        self._logits = self._run(graph)

    def _run(self, graph: WeightGraph) -> Sequence[np.ndarray]:
        return Forward(graph).prefill(self._prompts)[0]

    def kld(self, weights: Mapping[Address, TensorView]) -> float:
        """Mean divergence of the graph with other weights from itself, in nats."""
        logits = self._run(self.graph.with_weights(weights))
        return float(np.concatenate([position_kld(a, b) for a, b in zip(self._logits, logits, strict=True)]).mean())
