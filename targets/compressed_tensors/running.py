"""What transformers holds in memory of a folder, on the CPU."""

from __future__ import annotations

from collections.abc import Sequence

from ...graph.errors import UsageError
from ...quantize.encoding import get_encoding
from ...quantize.encodings.ct_base import CtEncoding
from ..running import RunMemory
from ..target import ListedTensor

# Bytes of an element in bfloat16, which checkpoints are computed in.
_COMPUTED = 2
# A matrix whose rows fit every encoding: how many bytes an element takes in one.
_SOME = 128, 4096


def run_memory(tensors: Sequence[ListedTensor]) -> RunMemory:
    """The first run leaves every packed weight as floats."""
    return RunMemory(weights=sum(map(_held, tensors)))


def _held(tensor: ListedTensor) -> int:
    try:
        encoding = get_encoding(tensor.encoding)
    except UsageError:  # what another writer stores
        return tensor.nbytes
    if not isinstance(encoding, CtEncoding):
        return tensor.nbytes
    return tensor.nbytes * _COMPUTED * _SOME[0] * _SOME[1] // encoding.nbytes(_SOME)
