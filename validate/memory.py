"""How much memory an artifact takes when it runs on the CPU: an estimate from shapes and encodings alone."""

from __future__ import annotations

from collections.abc import Sequence

from ..graph.blocks import Attention, Block, Dense, Mixer, Mixture, ShortConv
from ..graph.config import ModelConfig
from ..graph.errors import UsageError
from ..quantize.encoding import stored_name
from ..targets.plans import Plan
from ..targets.running import PORTION_TOKENS, RunMemory
from ..targets.target import Artifact, ListedTensor, get_target

# The context at which reports estimate; chats on devices rarely go beyond.
CONTEXT_TOKENS = 4096
_CONV_BYTES = 4


def cache_bytes(config: ModelConfig, *, n_tokens: int = CONTEXT_TOKENS, itemsize: int = 2) -> int:
    """Bytes of the caches of one conversation: keys and values by token, and the windows of the convolutions."""
    return sum(_mixer_bytes(mixer, config.hidden_size, n_tokens, itemsize) for mixer in config.mixers)


def _mixer_bytes(mixer: Mixer, hidden: int, n_tokens: int, itemsize: int) -> int:
    if isinstance(mixer, ShortConv):
        return hidden * (mixer.width - 1) * _CONV_BYTES
    return 2 * mixer.kv_size * min(n_tokens, mixer.window or n_tokens) * itemsize


def plan_run_bytes(config: ModelConfig, plan: Plan, n_tokens: int = CONTEXT_TOKENS) -> int:
    """Bytes of running what is planned; see `run_bytes`."""
    tensors = [ListedTensor(each.name, each.encoding.stored_name, each.nbytes) for each in plan.tensors]
    return _run_bytes(config, plan.target, plan.quant, tensors, plan.total_bytes, n_tokens)


def run_bytes(config: ModelConfig, artifact: Artifact, n_tokens: int = CONTEXT_TOKENS) -> int:
    """Bytes that the runtime holds of an artifact and a conversation of `n_tokens`, mapped files included, on the CPU."""
    return _run_bytes(config, artifact.target, artifact.quant, _listed(artifact), artifact.size_bytes, n_tokens)


def _run_bytes(
    config: ModelConfig, target: str, quant: str, tensors: Sequence[ListedTensor], size_bytes: int, n_tokens: int
) -> int:
    try:
        found = get_target(target).run_memory(quant, tensors, size_bytes)
    except UsageError:  # a plug-in's
        found = RunMemory(weights=size_bytes)
    n_together = min(PORTION_TOKENS, n_tokens)
    widest = max(_width(branch.block, config.hidden_size) for branch in config.branches)
    activations = found.per_activation * widest
    scores = found.per_score * max(
        (_n_scores(each, n_tokens) for each in config.of_kind(Attention).values()), default=0
    )
    caches = found.cache_copies * cache_bytes(config, n_tokens=n_tokens, itemsize=found.cache_itemsize)
    return found.weights + caches + round(n_together * (activations + scores))


def _width(block: Block, hidden: int) -> int:
    """The most numbers of a token that a block makes at once."""
    match block:
        case Dense():
            return block.size
        case Mixture():
            return block.top_k * block.size
        case ShortConv():
            return 3 * hidden
        case Attention():
            return block.q_size + 2 * block.kv_size


def _n_scores(attention: Attention, n_tokens: int) -> int:
    return attention.n_heads * min(n_tokens, (attention.window or n_tokens) + PORTION_TOKENS)


def _listed(artifact: Artifact) -> Sequence[ListedTensor]:
    if artifact.is_recognised:
        return get_target(artifact.target).listed(artifact)
    return [ListedTensor(t["name"], stored_name(t["encoding"]), t["bytes"]) for t in artifact.entry.get("tensors", ())]
