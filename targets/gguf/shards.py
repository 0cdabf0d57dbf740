"""How a file is split, and the header of each part.

The first part holds the metadata; every part says which it is. Parts are named `NAME-00001-of-00003.gguf`, and
llama.cpp opens the others when given the first.
Source: llama.cpp `gguf-py/gguf/gguf_writer.py`, `src/llama.cpp`, `llama_split_path`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ...convert.model.graph import Weight
from ...quantize.encodings._blocks import stored_type
from ...quantize.policy import Choice
from ..target import Address
from .header import KeyValue, TensorInfo, ValueType, aligned, header_bytes
from .names import tensor_name


@dataclass(frozen=True)
class Shard:
    """One file: its name, header, and tensors in order. Units: bytes."""

    path: str
    header: bytes
    offsets: Mapping[Address, int]  # from the start of the file
    data_bytes: int

    @property
    def nbytes(self) -> int:
        return len(self.header) + self.data_bytes


def lay_out(
    stem: str,
    pairs: Sequence[KeyValue],
    stored: Mapping[Address, Weight],
    choices: Mapping[Address, Choice],
    *,
    max_bytes: int | None = None,
) -> tuple[Shard, ...]:
    """The files of an artifact, tensors in the order of `choices`; a new one where data would exceed `max_bytes`."""
    sizes = {
        address: aligned(stored[address].view.n_rows * choice.encoding.row_nbytes(stored[address].view.n_cols))
        for address, choice in choices.items()
    }
    groups: list[list[Address]] = [[]]
    filled = 0
    for address, size in sizes.items():
        if max_bytes is not None and groups[-1] and filled + size > max_bytes:
            groups.append([])
            filled = 0
        groups[-1].append(address)
        filled += size
    shards = []
    for number, group in enumerate(groups):
        infos, starts, offset = [], {}, 0
        for address in group:
            infos.append(
                TensorInfo(tensor_name(address), stored[address].shape, stored_type(choices[address].encoding), offset)
            )
            starts[address] = offset
            offset += sizes[address]
        own = [*(pairs if number == 0 else ()), *_split_pairs(number, len(groups), len(choices))]
        header = header_bytes(own, infos)
        path = stem + (f"-{number + 1:05}-of-{len(groups):05}" if len(groups) > 1 else "") + ".gguf"
        shards.append(Shard(path, header, {a: len(header) + start for a, start in starts.items()}, offset))
    return tuple(shards)


def _split_pairs(number: int, count: int, n_tensors: int) -> list[KeyValue]:
    if count == 1:
        return []
    return [
        KeyValue("split.no", ValueType.UINT16, number),
        KeyValue("split.count", ValueType.UINT16, count),
        KeyValue("split.tensors.count", ValueType.INT32, n_tensors),
    ]
