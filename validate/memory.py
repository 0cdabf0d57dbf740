"""How much memory an artifact takes when it runs, beside its size on disk: an estimate from shapes alone."""

from __future__ import annotations

from ..graph.blocks import Mixer, ShortConv
from ..graph.config import ModelConfig
from ..graph.errors import UsageError
from ..targets.target import Target, get_target

# The context at which reports estimate; chats on devices rarely go beyond.
CONTEXT_TOKENS = 4096
_CONV_BYTES = 4


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
