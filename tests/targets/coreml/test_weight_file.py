"""weight.bin as coremltools' own writer makes it, and files that are none."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_convert.graph.errors import InputError
from lfm_convert.targets.coreml.evaluator.element_types import BY_NAME, unpack
from lfm_convert.targets.coreml.evaluator.weight_file import WeightFile
from lfm_convert.targets.coreml.evaluator.weights import Stored

# Elements of each type that the library writes, and how it wants them.
_VALUES = {
    "fp16": np.array([1.5, -2, 0.1], np.float16),
    "fp32": np.array([1.5, -2, 0.1], np.float32),
    "int8": np.array([-128, 127, 3], np.int8),
    "uint8": np.array([0, 255, 3], np.uint8),
    "int16": np.array([-32768, 32767, 3], np.int16),
    "uint16": np.array([0, 65535, 3], np.uint16),
    "int32": np.array([-(2**31), 2**31 - 1, 3], np.int32),
    "uint32": np.array([0, 2**32 - 1, 3], np.uint32),
    "int4": np.array([-8, 7, 3, -1, 0], np.int8),
    "uint4": np.array([0, 15, 3, 8, 1], np.uint8),
    "uint1": np.array([1, 0, 1, 1, 0, 0, 1, 0, 1, 1, 1], np.uint8),
    "uint2": np.array([3, 0, 2, 1, 3, 2, 1], np.uint8),
    "uint3": np.array([7, 0, 5, 2, 1, 6, 3, 4, 7], np.uint8),
    "uint6": np.array([63, 0, 21, 42, 7], np.uint8),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """A file with one constant of each type, and where they are."""
    from coremltools import libmilstoragepython as library

    path = tmp_path_factory.mktemp("weights") / "weight.bin"
    writer, offsets = library._BlobStorageWriter(str(path)), {}
    for name, values in _VALUES.items():
        if name == "fp16":
            offsets[name] = writer.write_fp16_data(values.view(np.uint16))
        else:
            offsets[name] = getattr(writer, f"write_{'float' if name == 'fp32' else name}_data")(values)
    del writer  # which then writes its header
    return path, offsets


@pytest.mark.parametrize("name", _VALUES)
def test_constants_of_coremltools_are_read(written: tuple[Path, dict[str, int]], name: str) -> None:
    path, offsets = written
    file, element, values = WeightFile(path), BY_NAME[name], _VALUES[name]
    assert file.count == len(_VALUES)
    data = file.constant(offsets[name], element, values.shape)
    stored = Stored(element, values.shape, data, name)
    np.testing.assert_array_equal(stored.whole(), values)
    for start in range(len(values)):  # rows may begin within a byte
        np.testing.assert_array_equal(stored.rows(start, len(values)), values[start:])
    np.testing.assert_array_equal(stored.take(np.array([[2, 0], [2, 1]])), values[[[2, 0], [2, 1]]])


@settings(max_examples=60, deadline=None)
@given(
    bits=st.sampled_from([1, 2, 3, 4, 6]),
    values=st.lists(st.integers(0, 63), min_size=1, max_size=40),
    first=st.integers(0, 39),
)
def test_bits_are_unpacked_lowest_first(bits: int, values: list[int], first: int) -> None:
    codes = [value % (1 << bits) for value in values]
    stream = sum(code << (bits * place) for place, code in enumerate(codes))
    packed = np.frombuffer(stream.to_bytes(-(-len(codes) * bits // 8), "little"), np.uint8)
    first = min(first, len(codes) - 1)
    assert unpack(packed, BY_NAME[f"uint{bits}"], first, len(codes) - first).tolist() == codes[first:]


def _file(tmp_path: Path, data: bytes) -> WeightFile:
    path = tmp_path / "weight.bin"
    path.write_bytes(data)
    return WeightFile(path)


def _header(count: int = 1, version: int = 2) -> bytes:
    return struct.pack("<II", count, version).ljust(64, b"\0")


def _entry(kind: int = 2, nbytes: int = 8, start: int = 128, sentinel: int = 0xDEADBEEF) -> bytes:
    return struct.pack("<IIQQ", sentinel, kind, nbytes, start).ljust(64, b"\0")


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "no"),
        (b"\0\0\0", "its header does not lie within the file's 3 bytes"),
        (_header(version=1), "expected version 2 of weight.bin, found 1"),
        (b"PK\3\4" + b"\0" * 100, "expected version 2 of weight.bin, found 0"),
    ],
)
def test_a_file_that_is_none_is_one_sentence(tmp_path: Path, data: bytes, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        _file(tmp_path, data)


@pytest.mark.parametrize(
    ("entry", "offset", "expected"),
    [
        (_entry(sentinel=7), 64, "expected the entry of a constant at byte 64, found 0x00000007"),
        (_entry(kind=99), 64, "unknown element type 99"),
        (_entry(kind=1), 64, "is fp16, the model says fp32"),
        (_entry(nbytes=12), 64, "is truncated: the constant at byte 64 ends at byte 140, the file at 136"),
        (_entry(nbytes=2**63, start=2**63), 64, "is truncated"),
        (_entry(nbytes=4), 64, r"has 4 bytes: expected 8 for fp32 \[2\]"),
        (_entry(), 2**62, "does not lie within"),
        (_entry(), 132, "does not lie within"),
        (_entry(), 66, "does not lie within"),
    ],
)
def test_an_entry_that_is_wrong_is_one_sentence(tmp_path: Path, entry: bytes, offset: int, expected: str) -> None:
    file = _file(tmp_path, _header() + entry + bytes(8))
    with pytest.raises(InputError, match=expected):
        file.constant(offset, BY_NAME["fp32"], (2,))
