"""The two functions of a package, which share its weights: `decode` reads one token, `prefill` a chunk of them.

| input          | type and shape                  | content                                                        |
|----------------|---------------------------------|----------------------------------------------------------------|
| input_ids      | int32 [1, n]                    | n is 1, or the chunk                                           |
| position       | int32 [1]                       | tokens that the conversation already holds                     |
| n_tokens       | int32 [1], prefill only         | how many of the chunk are real; the others are any valid ids   |
| conv_state_in  | float16, see `caches`           | `conv_state_out` of the call before; anything at position 0    |

Outputs: `logits` float32 [1, n, vocabulary], those of padding without meaning, and `conv_state_out`. States: see `caches`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ...graph.graph import WeightGraph
from ...graph.roles import Role
from .builder import Builder, Var
from .caches import Caches
from .interface import CONV_IN, CONV_OUT, DECODE, IDS, LOGITS, N_TOKENS, POSITION, PREFILL
from .mil import Dtype, Feature, Signature, model
from .norm import norm
from .prelude import Context, begin
from .residual import run_layer
from .store import WeightStore


@dataclass(frozen=True)
class Function:
    """A function, and what an app must know of it."""

    signature: Signature
    data: bytes


def build(
    graph: WeightGraph, store: WeightStore, caches: Caches, *, all_states: bool, metadata: Mapping[str, object]
) -> bytes:
    """The specification; reads no weight. `all_states` keeps the convolutions' windows in a state of their own."""
    made = [
        _function(graph, store, caches, name, n, all_states=all_states)
        for name, n in ((DECODE, 1), (PREFILL, caches.chunk))
    ]
    functions = {each.signature.name: each.data for each in made}
    return model(functions, [each.signature for each in made], default=DECODE, metadata=metadata)


def signature(graph: WeightGraph, caches: Caches, name: str, n: int, *, all_states: bool) -> Signature:
    """What a function of n tokens takes and gives."""
    inputs = [
        Feature(IDS, Dtype.INT32, (1, n), "token ids" if n == 1 else "token ids, padded at the end"),
        Feature(POSITION, Dtype.INT32, (1,), "tokens that the conversation already holds"),
    ]
    if name == PREFILL:
        inputs.append(Feature(N_TOKENS, Dtype.INT32, (1,), "how many of the token ids are real"))
    outputs = [Feature(LOGITS, Dtype.FLOAT32, (1, n, graph.config.vocab_size), "one row a token")]
    states = [caches.kv_cache] if caches.kv_cache else []
    if caches.conv_state is not None and all_states:
        states.append(caches.conv_state)
    elif caches.conv_state is not None:
        shape = caches.conv_state.shape
        about = f"{CONV_OUT} of the call before; anything at position 0"
        inputs.append(Feature(CONV_IN, Dtype.FLOAT16, shape, about))
        outputs.append(Feature(CONV_OUT, Dtype.FLOAT16, shape, f"{CONV_IN} of the next call"))
    return Signature(name, tuple(inputs), tuple(states), tuple(outputs))


def _function(
    graph: WeightGraph, store: WeightStore, caches: Caches, name: str, n: int, *, all_states: bool
) -> Function:
    b, config = Builder(store), graph.config
    said = signature(graph, caches, name, n, all_states=all_states)
    n_tokens = Var(N_TOKENS, Dtype.INT32, (1,)) if name == PREFILL else None
    state = caches.conv_state if all_states else None
    table = b.constant(store.weight(graph.top[Role.EMBED]))
    hidden = b.scaled(b.gather(table, Var(IDS, Dtype.INT32, (1, n))), config.embedding_scale)
    context = begin(b, config, caches, n, n_tokens=n_tokens, state=state)
    for layer in graph.layers:
        hidden = run_layer(context, layer, hidden)
    _keep(context, state)
    _head(context, graph, table, hidden)
    return Function(said, b.serialise(said.inputs, said.states, [each.name for each in said.outputs]))


def _keep(context: Context, state: Feature | None) -> None:
    """The convolutions' windows, as a state or as an output."""
    if context.kept:
        windows = [context.kept[layer] for layer in context.caches.convolutions]
        kept = context.b.concat(windows, 0, "" if state else CONV_OUT)
        if state is not None:
            context.b.write_state(state, kept)


def _head(context: Context, graph: WeightGraph, table: Var, hidden: Var) -> None:
    b = context.b
    with b.scope("head"):
        normed = norm(context, graph.config.final_norm, graph.top[Role.FINAL_NORM], hidden)
        head = table if graph.is_tied else context.weight(graph.top[Role.LM_HEAD])
        logits = b.scaled(b.linear(normed, head), graph.config.logit_scale)
        b.cast(logits, Dtype.FLOAT32, LOGITS)
