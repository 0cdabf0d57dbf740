"""The two functions of a package, which share its weights: `decode` reads one token, `prefill` a chunk of them.

| input          | type and shape                  | content                                                        |
|----------------|---------------------------------|----------------------------------------------------------------|
| input_ids      | int32 [1, n]                    | n is 1, or the chunk                                           |
| position       | int32 [1]                       | tokens that the conversation already holds                     |
| n_tokens       | int32 [1], prefill only         | how many of the chunk are real; the others are any valid ids   |
| conv_state_in  | float16, see `caches`           | `conv_state_out` of the call before; anything at position 0    |

Outputs: `logits` float32 [1, n, vocabulary], those of padding without meaning, and `conv_state_out`. States: see `caches`.

Of several packages that are run one after another each has the caches of its own layers. Between them goes the residual
stream [1, n, hidden], float16, or float32 where embeddings are scaled: all but the last give `hidden_out` in place of
logits, all but the first take it as `hidden_in` in place of ids.
"""

from __future__ import annotations

from collections.abc import Mapping

from ...graph.roles import Role
from .builder import Builder, Var
from .interface import CONV_OUT, DECODE, HIDDEN_IN, HIDDEN_OUT, IDS, LOGITS, N_TOKENS, PREFILL
from .mil import Dtype, Feature, Signature, model
from .norm import norm
from .piece import Piece
from .prelude import Context, begin
from .residual import run_layer
from .store import WeightStore


def build(piece: Piece, store: WeightStore, metadata: Mapping[str, object]) -> bytes:
    """The specification; reads no weight."""
    signatures = [piece.signature(name) for name in (DECODE, PREFILL)]
    functions = {each.name: _function(piece, store, each) for each in signatures}
    return model(functions, signatures, default=DECODE, metadata=metadata)


def _function(piece: Piece, store: WeightStore, said: Signature) -> bytes:
    b, graph = Builder(store), piece.graph
    given = {each.name: Var(each.name, each.dtype, each.shape) for each in said.inputs}
    state = piece.caches.conv_state if piece.all_states else None
    if piece.is_first:
        table = b.constant(store.weight(graph.top[Role.EMBED]))
        hidden = b.scaled(b.cast(b.gather(table, given[IDS]), piece.stream), graph.config.embedding_scale)
    else:
        hidden = given[HIDDEN_IN]
    n_tokens = given.get(N_TOKENS)
    context = begin(b, graph.config, piece.caches, hidden.shape[1], n_tokens=n_tokens, state=state)
    for layer in piece.layers:
        hidden = run_layer(context, graph.layers[layer], hidden)
    _keep(context, state)
    if piece.is_last:
        _head(context, piece, hidden)
    else:
        b.one("identity", hidden.dtype, hidden.shape, HIDDEN_OUT, x=hidden)
    return b.serialise(said.inputs, said.states, [each.name for each in said.outputs])


def _keep(context: Context, state: Feature | None) -> None:
    """The convolutions' windows, as a state or as an output."""
    if context.kept:
        windows = [context.kept[layer] for layer in context.caches.convolutions]
        kept = context.b.concat(windows, 0, "" if state else CONV_OUT)
        if state is not None:
            context.b.write_state(state, kept)


def _head(context: Context, piece: Piece, hidden: Var) -> None:
    b, graph = context.b, piece.graph
    with b.scope("head"):
        normed = norm(context, graph.config.final_norm, graph.top[Role.FINAL_NORM], hidden)
        logits = b.scaled(b.linear(normed, context.weight(piece.head)), graph.config.logit_scale)
        b.cast(logits, Dtype.FLOAT32, LOGITS)
