"""What one package holds: all of a model, or some of its layers in turn, with what these keep between calls."""

from __future__ import annotations

from dataclasses import dataclass, replace

from ...graph.graph import Weight, WeightGraph
from ...graph.roles import Role
from .caches import Caches
from .interface import CONV_IN, CONV_OUT, HIDDEN_IN, HIDDEN_OUT, IDS, LOGITS, N_TOKENS, POSITION, PREFILL
from .mil import Dtype, Feature, Signature


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Layers of a graph: the first piece also has the token table, the last the final norm and the head.

    `number` is from 1. `all_states` keeps the convolutions' windows in a state of their own.
    """

    graph: WeightGraph
    layers: range
    caches: Caches
    all_states: bool
    number: int = 1
    count: int = 1

    @property
    def is_first(self) -> bool:
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        return self.layers.stop == len(self.graph.layers)

    @property
    def stream(self) -> Dtype:
        """Of the residual stream. Models that scale their embeddings have one that may leave float16, which ends at 65504.

        What is multiplied by a matrix has gone through a norm and stays float16.
        """
        return Dtype.FLOAT16 if self.graph.config.embedding_scale == 1 else Dtype.FLOAT32

    @property
    def head(self) -> Weight:
        """The head as it is stored: a tied one is the table of the same package, and a copy of another's."""
        if not self.graph.is_tied:
            return self.graph.top[Role.LM_HEAD]
        table = self.graph.top[Role.EMBED]
        return table if self.is_first else replace(table, role=Role.LM_HEAD)

    def signature(self, name: str) -> Signature:
        """What a function takes and gives."""
        n = self.caches.chunk if name == PREFILL else 1
        inputs, outputs = [self._stream(HIDDEN_IN, n)], [self._stream(HIDDEN_OUT, n)]
        if self.is_first:
            about = "token ids, padded at the end" if name == PREFILL else "token ids"
            inputs = [Feature(IDS, Dtype.INT32, (1, n), about)]
        if self.is_last:
            outputs = [Feature(LOGITS, Dtype.FLOAT32, (1, n, self.graph.config.vocab_size), "one row a token")]
        inputs.append(Feature(POSITION, Dtype.INT32, (1,), "tokens that the conversation already holds"))
        if name == PREFILL:
            inputs.append(Feature(N_TOKENS, Dtype.INT32, (1,), "how many of the token ids are real"))
        states = [self.caches.kv_cache] if self.caches.kv_cache else []
        if self.caches.conv_state is not None and self.all_states:
            states.append(self.caches.conv_state)
        elif self.caches.conv_state is not None:
            shape = self.caches.conv_state.shape
            about = f"{CONV_OUT} of the call before; anything at position 0"
            inputs.append(Feature(CONV_IN, Dtype.FLOAT16, shape, about))
            outputs.append(Feature(CONV_OUT, Dtype.FLOAT16, shape, f"{CONV_IN} of the next call"))
        return Signature(name, tuple(inputs), tuple(states), tuple(outputs))

    def _stream(self, name: str, n: int) -> Feature:
        about = f"{HIDDEN_OUT} of the package before" if name == HIDDEN_IN else f"{HIDDEN_IN} of the package after"
        return Feature(name, self.stream, (1, n, self.graph.config.hidden_size), about)
