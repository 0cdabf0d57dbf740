"""How much memory an artifact takes when it runs, beside its size on disk, and how much comparing it takes: estimates from
shapes alone.
"""

from __future__ import annotations

from ..graph.blocks import Mixer, ShortConv
from ..graph.config import ModelConfig
from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import HEAD_ELEMENTS
from ..graph.reference.weights import KEEP_BYTES
from ..graph.roles import Trait
from ..graph.units import format_size
from ..targets.target import Target, get_target

# The context at which reports estimate; chats on devices rarely go beyond.
CONTEXT_TOKENS = 4096
_CONV_BYTES = 4
# Of our own process: the interpreter and what it imports, in bytes; tokens of a batch, which an artifact's weights read
# twice; what a layer holds of its widest activations at a time; and how many forwards there are at a time, each with a
# block of logits: the checkpoint's, the artifact's, and that in another arithmetic.
_BASE_BYTES = 150 * 10**6
_TOKENS = 2048
_WIDE_ACTIVATIONS = 4
_N_FORWARDS = 3


def cache_bytes(config: ModelConfig, *, n_tokens: int = CONTEXT_TOKENS, itemsize: int = Target.CACHE_ITEMSIZE) -> int:
    """Bytes of the caches of one conversation: keys and values by token, and the windows of the convolutions."""
    return sum(_mixer_bytes(mixer, config.hidden_size, n_tokens, itemsize) for mixer in config.mixers)


def _mixer_bytes(mixer: Mixer, hidden: int, n_tokens: int, itemsize: int) -> int:
    if isinstance(mixer, ShortConv):
        return hidden * (mixer.width - 1) * _CONV_BYTES
    return 2 * mixer.kv_size * min(n_tokens, mixer.window or n_tokens) * itemsize


def run_bytes(config: ModelConfig, size_bytes: int, *, target: str, quant: str, n_tokens: int = CONTEXT_TOKENS) -> int:
    """Bytes of weights and caches; activations and the runtime itself come on top."""
    return size_bytes + cache_bytes(config, n_tokens=n_tokens, itemsize=_itemsize(target, quant))


def _itemsize(target: str, quant: str) -> int:
    try:
        return get_target(target).cache_itemsize(quant)
    except UsageError:  # a plug-in's
        return Target.CACHE_ITEMSIZE


def comparison_bytes(graph: WeightGraph) -> int:
    """Bytes that our own process takes to compare artifacts with a checkpoint, beside the files it maps."""
    weights = list(graph.weights())
    widest = max(w.view.shape[-2] for w in weights if w.role.trait in (Trait.MATRIX, Trait.EXPERTS))
    activations = 4 * _WIDE_ACTIVATIONS * _TOKENS * widest
    logits = 4 * _N_FORWARDS * min(HEAD_ELEMENTS, _TOKENS * graph.config.vocab_size)
    whole = 4 * graph.n_parameters
    return _BASE_BYTES + max(activations, logits) + (_N_FORWARDS * whole if whole <= KEEP_BYTES else 0)


def refuse_too_little(graph: WeightGraph, max_memory: int | None) -> None:
    """Raises UsageError for a limit that is less than comparing takes."""
    least = comparison_bytes(graph)
    if max_memory is not None and max_memory < least:
        raise UsageError(
            f"--max-memory {format_size(max_memory)} is too little to compare with {graph.name}: "
            f"at least {format_size(least)}"
        )
