"""How a file is split, and the header of each part.

The first part holds the metadata; every part says which it is. Parts are named `NAME-00001-of-00003.gguf`, and
llama.cpp opens the others when given the first.
Source: llama.cpp `gguf-py/gguf/gguf_writer.py`, `src/llama.cpp`, `llama_split_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...quantize.gguf_file.header import KeyValue, TensorInfo, ValueType, aligned, header_bytes
from ..naming import filled, part_name
from .choices import Chosen


@dataclass(frozen=True)
class Shard:
    """One file: its name, header, and tensors in order. Units: bytes."""

    path: str
    header: bytes
    offsets: Mapping[str, int]  # from the start of the file
    data_bytes: int

    @property
    def nbytes(self) -> int:
        return len(self.header) + self.data_bytes


def lay_out(
    stem: str, pairs: Sequence[KeyValue], tensors: Sequence[Chosen], *, max_bytes: int | None = None
) -> tuple[Shard, ...]:
    """The files of an artifact, tensors in order; a new one where data would exceed `max_bytes`."""
    groups = [tensors[part] for part in filled([aligned(each.nbytes) for each in tensors], max_bytes=max_bytes)]
    shards = []
    for number, group in enumerate(groups):
        infos, offset = [], 0
        for tensor in group:
            infos.append(TensorInfo(tensor.name, tensor.view.shape, tensor.encoding.stored_name, offset))
            offset += aligned(tensor.nbytes)
        own = [*(pairs if number == 0 else ()), *_split_pairs(number, len(groups), len(tensors))]
        header = header_bytes(own, infos)
        path = part_name(stem, number + 1, len(groups), ".gguf")
        shards.append(Shard(path, header, {info.name: len(header) + info.offset for info in infos}, offset))
    return tuple(shards)


def _split_pairs(number: int, count: int, n_tensors: int) -> list[KeyValue]:
    if count == 1:
        return []
    return [
        KeyValue("split.no", ValueType.UINT16, number),
        KeyValue("split.count", ValueType.UINT16, count),
        KeyValue("split.tensors.count", ValueType.INT32, n_tensors),
    ]
