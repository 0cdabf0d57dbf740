"""What ONNX Runtime holds in memory of a graph, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.errors import UsageError
from ...quantize.encoding import get_encoding
from ...quantize.encodings.int_block import IntBlock32
from ..running import RunMemory
from ..target import ListedTensor

# Beside the codes MatMulNBits' packed form has a scale and a sum of each block, in float32, and scales in half precision
# are widened into another array before. Source: onnxruntime/core/mlas/lib/sqnbitgemm.cpp.
_PACKED_BYTES, _WIDENED_BYTES = 8, 4
# Blocks of a row that is long enough for whole bytes of every part.
_SOME = 64
# The library's own, what an activation of the widest layer takes, and a score of attention in either precision; measured
# with a model of 350 million weights, and held to others by benchmarks/run_memory.py.
_BASE_BYTES = 29_000_000
_PER_ACTIVATION = 20.0
_PER_SCORE, _PER_SCORE_HALF = 4.0, 6.0


def run_memory(tensors: Sequence[ListedTensor], *, is_half: bool) -> RunMemory:
    """`is_half` says that activations and caches are float16. Past and present caches exist side by side."""
    has_head = any(each.name.startswith("lm_head") for each in tensors)
    return RunMemory(
        weights=_BASE_BYTES + sum(_held(each, is_head="embed" in each.name and not has_head) for each in tensors),
        cache_itemsize=2 if is_half else 4,
        cache_copies=2,
        per_activation=_PER_ACTIVATION,
        per_score=_PER_SCORE_HALF if is_half else _PER_SCORE,
    )


def _held(tensor: ListedTensor, *, is_head: bool) -> int:
    """Bytes of a tensor as kernels use it. One that is the table of the vocabulary and the head is both: rows are looked
    up as they are stored, and multiplied by a packed copy."""
    if tensor.encoding in ("F32", "F16") and ".experts." in tensor.name:
        return tensor.nbytes  # those that are met are widened, and forgotten
    if tensor.encoding in ("F32", "F16"):
        n_elements = tensor.nbytes // (4 if tensor.encoding == "F32" else 2)
        return 4 * n_elements * (2 if is_head else 1)
    try:
        encoding = get_encoding(tensor.encoding)
    except UsageError:  # what another writer stores
        return tensor.nbytes
    if not isinstance(encoding, IntBlock32):
        return tensor.nbytes
    n_blocks = tensor.nbytes * _SOME // encoding.row_nbytes(_SOME * encoding.block)
    block_bytes = encoding.block * encoding.bits // 8 + _PACKED_BYTES
    if encoding.scale_dtype.itemsize == 2:
        block_bytes += _WIDENED_BYTES
    return n_blocks * block_bytes + (tensor.nbytes if is_head else 0)
