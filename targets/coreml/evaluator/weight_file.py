"""weight.bin: where each constant lies, read by a map of the file.

| bytes of the file  | content                                                                   |
|--------------------|---------------------------------------------------------------------------|
| 0 .. 64            | uint32 number of constants, uint32 version 2, zeros                       |
| a constant's entry | uint32 0xDEADBEEF, uint32 element type, uint64 bytes, uint64 offset of its data, uint64 padding bits, zeros |

Entries and data begin at multiples of 64 bytes. A spec refers to a constant by the offset of its entry.
Source: what `libmilstoragepython` of coremltools 9.0 writes, byte for byte (`tests/targets/coreml/test_weight_file.py`).
"""

from __future__ import annotations

import math
import mmap
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....graph.errors import InputError
from .element_types import BY_NAME, ElementType

ALIGNMENT = 64
SENTINEL = 0xDEADBEEF
VERSION = 2
_BLOB_TYPES = {each.in_blob: each for each in BY_NAME.values() if each.in_blob is not None}


@dataclass(frozen=True)
class Entry:
    """One constant: its data lie at [start, start + nbytes). Units: bytes."""

    offset: int
    element: ElementType
    start: int
    nbytes: int


class WeightFile:
    """A weight.bin, open.

    Raises: InputError for a file that is shorter than its header, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise InputError(f"{path}: is missing, or no file")
        try:
            with path.open("rb") as file:
                self.nbytes = path.stat().st_size
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
                self._bytes = np.frombuffer(self._map, np.uint8)
        except (OSError, ValueError) as error:  # an empty file cannot be mapped
            raise InputError(f"{path}: expected a file of weights, found none that can be read ({error})") from None
        self.count, version = (int(n) for n in self._words(0, 2, "its header"))
        if version != VERSION:
            raise InputError(f"{path}: expected version {VERSION} of weight.bin, found {version}")

    def entry(self, offset: int) -> Entry:
        """The constant whose entry lies at an offset.

        Raises: InputError if there is none, or its data are not all there.
        """
        sentinel, number = (int(n) for n in self._words(offset, 2, f"the entry at byte {offset}"))
        if sentinel != SENTINEL:
            raise InputError(f"{self.path}: expected the entry of a constant at byte {offset}, found 0x{sentinel:08x}")
        if number not in _BLOB_TYPES:
            raise InputError(f"{self.path}: the constant at byte {offset} is of the unknown element type {number}")
        nbytes, start = (int(n) for n in self._words(offset + 8, 2, f"the entry at byte {offset}", "<u8"))
        if start + nbytes > self.nbytes:
            raise InputError(
                f"{self.path}: is truncated: the constant at byte {offset} ends at byte {start + nbytes}, "
                f"the file at {self.nbytes}"
            )
        return Entry(offset, _BLOB_TYPES[number], start, nbytes)

    def data(self, entry: Entry) -> NDArray[np.uint8]:
        """The bytes of a constant, in the map."""
        return self._bytes[entry.start : entry.start + entry.nbytes]

    def forget(self) -> None:
        """Gives the memory back that reading has taken so far, where the system can; the file is read anew."""
        if hasattr(mmap, "MADV_DONTNEED"):
            self._map.madvise(mmap.MADV_DONTNEED)

    def constant(self, offset: int, element: ElementType, shape: tuple[int, ...]) -> NDArray[np.uint8]:
        """The bytes of the constant at an offset.

        Raises: InputError if it is of another element type, or of another size than its shape says.
        """
        entry = self.entry(offset)
        if entry.element != element:
            raise InputError(
                f"{self.path}: the constant at byte {offset} is {entry.element.name}, the model says {element.name}"
            )
        nbytes = -(-math.prod(shape) * element.bits // 8)
        if entry.nbytes != nbytes:
            raise InputError(
                f"{self.path}: the constant at byte {offset} has {entry.nbytes} bytes: expected {nbytes} "
                f"for {element.name} {list(shape)}"
            )
        return self.data(entry)

    def _words(self, offset: int, count: int, what: str, dtype: str = "<u4") -> NDArray[np.unsignedinteger]:
        end = offset + count * np.dtype(dtype).itemsize
        if offset % 4 or end > self.nbytes:
            raise InputError(f"{self.path}: {what} does not lie within the file's {self.nbytes} bytes")
        return self._bytes[offset:end].view(dtype)
