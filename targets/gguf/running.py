"""What llama.cpp holds in memory of a GGUF, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from ..running import RunMemory
from ..target import ListedTensor

# Types whose rows llama.cpp interleaves into a copy on processors with AVX2; the file stays mapped beside it.
# Source: ggml/src/ggml-cpu/repack.cpp, and what the library itself prints of its buffers.
REPACKED = frozenset({"Q4_0", "Q4_K", "IQ4_NL", "MXFP4"})
# Rows are looked up in it, as they are stored.
_EMBEDDING = "token_embd.weight"
# The library's own, and what an activation of the widest layer takes with its copies in other types; measured with a
# model of 350 million weights, and held to others by benchmarks/run_memory.py.
_BASE_BYTES = 15_000_000
_PER_ACTIVATION = 18.0


def repacked_bytes(tensors: Sequence[ListedTensor]) -> int:
    """Bytes of the matrices that are held a second time."""
    return sum(each.nbytes for each in tensors if each.encoding in REPACKED and each.name != _EMBEDDING)


def run_memory(tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
    weights = size_bytes + repacked_bytes(tensors) + _BASE_BYTES
    return RunMemory(weights=weights, per_activation=_PER_ACTIVATION)
