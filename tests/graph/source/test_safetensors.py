"""safetensors files: every hostile one is refused with its reason, every good one is read exactly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lfm_convert.graph.source.safetensors import SafetensorsFile
from support.refusals import refused
from support.safetensors_files import Tensor, bfloat16, float32, with_header, write_tensors

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 16900000000\n"


def entry(shape: Any, begin: int, end: int, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def twice(first: dict[str, Any], second: dict[str, Any]) -> bytes:
    return f'{{"a": {json.dumps(first)}, "a": {json.dumps(second)}}}'.encode()


ONE = with_header({"a": entry([2], 0, 8)}, bytes(8))

HOSTILE: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "has 0 bytes, too few"),
    "seven-bytes": (b"\x01" + bytes(6), "has 7 bytes, too few"),
    "eight-bytes": (b"\x10" + bytes(7), "declares a header of 16 bytes in a file of 8"),
    "lfs-pointer": (POINTER, "Git LFS pointer"),
    "header-2^63": (with_header(b"{}", length=2**63), "declares a header of 9223372036854775808 bytes"),
    "header-beyond-file": (with_header(b"{}", length=3), "declares a header of 3 bytes in a file of 10"),
    "header-bomb": (with_header(b"{" + b" " * (17 << 20)), "expected at most 16777216"),
    "no-brace": (with_header(b"[]"), "does not start with '{'"),
    "leading-space": (with_header(b" {}"), "does not start with '{'"),
    "no-header": (with_header(b""), "does not start with '{'"),
    "utf-16": (with_header("{}".encode("utf-16-le")), "not valid JSON"),
    "truncated-json": (with_header(b'{"a": '), "not valid JSON"),
    "two-objects": (with_header(b"{}{}"), "not valid JSON"),
    "deep-json": (with_header(b'{"a":' + b"[" * 100_000), "not valid JSON"),
    "long-number": (with_header(b'{"a":' + b"9" * 10_000 + b"}"), "not valid JSON"),
    "duplicate": (with_header(twice(entry([1], 0, 4), entry([1], 4, 8)), bytes(8)), "'a' is given twice"),
    "duplicate-equal": (with_header(twice(entry([1], 0, 4), entry([1], 0, 4)), bytes(4)), "'a' is given twice"),
    "overlap": (with_header({"a": entry([2], 0, 8), "b": entry([1], 4, 8)}, bytes(8)), "'b' overlaps"),
    "same-bytes": (with_header({"a": entry([1], 0, 4), "b": entry([1], 0, 4)}, bytes(4)), "'b' overlaps"),
    "hole": (with_header({"a": entry([1], 0, 4), "b": entry([1], 8, 12)}, bytes(12)), "'b' leaves a hole"),
    "late-start": (with_header({"a": entry([1], 4, 8)}, bytes(8)), "'a' leaves a hole"),
    "trailing": (ONE + b"\0", "has trailing bytes: expected 8 bytes of tensors, found 9"),
    "truncated": (ONE[:-1], "truncated: expected 8 bytes of tensors, found 7"),
    "size-mismatch": (with_header({"a": entry([3], 0, 8)}, bytes(8)), "expected 12 bytes, found 8"),
    "wrong-dtype-size": (with_header({"a": entry([2], 0, 8, "BF16")}, bytes(8)), "[2] BF16: expected 4 bytes, found 8"),
    "overflow-shape": (with_header({"a": entry([2**32, 2**32], 0, 0)}), f"expected {2**66} bytes, found 0"),
    "huge-axis": (with_header({"a": entry([2**63], 0, 8)}, bytes(8)), "malformed header entry"),
    "many-axes": (with_header({"a": entry([1] * 9, 0, 4)}, bytes(4)), "9 axes"),
    "negative-axis": (with_header({"a": entry([-2, -1], 0, 8)}, bytes(8)), "zero or more"),
    "float-axis": (with_header({"a": entry([2.0], 0, 8)}, bytes(8)), "must be integers"),
    "bool-axis": (with_header({"a": entry([True], 0, 4)}, bytes(4)), "must be integers"),
    "text-shape": (with_header({"a": entry("2", 0, 8)}, bytes(8)), "must be integers"),
    "reversed-offsets": (with_header({"a": entry([1], 4, 0)}, bytes(4)), "found -4"),
    "unknown-dtype": (with_header({"a": entry([1], 0, 4, "Q4")}, bytes(4)), "malformed header entry: 'Q4'"),
    "list-dtype": (with_header({"a": entry([1], 0, 4, [])}, bytes(4)), "malformed header entry"),
    "no-offsets": (with_header({"a": {"dtype": "F32", "shape": [1]}}, bytes(4)), "malformed header entry"),
    "three-offsets": (
        with_header({"a": {**entry([1], 0, 4), "data_offsets": [0, 4, 4]}}, bytes(4)),
        "malformed header entry",
    ),
    "entry-is-a-list": (with_header({"a": []}), "malformed header entry"),
    "name-with-newline": (with_header({"a\n": entry([1], 0, 4)}, bytes(4)), "cannot be printed"),
    "name-with-nul": (with_header({"a\0": entry([1], 0, 4)}, bytes(4)), "cannot be printed"),
    "name-with-escape": (with_header({"\x1b[2J": entry([1], 0, 4)}, bytes(4)), "cannot be printed"),
    "metadata-of-numbers": (with_header({"__metadata__": {"a": 1}}), "__metadata__"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_files_are_refused_with_their_name_and_reason(case: str, tmp_path: Path) -> None:
    data, part = HOSTILE[case]
    path = tmp_path / "model.safetensors"
    path.write_bytes(data)
    with refused(path, part):
        SafetensorsFile(path)


def test_an_absent_file_is_refused(tmp_path: Path) -> None:
    with refused("absent.safetensors", "No such file"):
        SafetensorsFile(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("dtype", ["F64", "I8", "F8_E4M3", "I32"])
def test_foreign_dtypes_are_listed_but_not_read(dtype: str, tmp_path: Path) -> None:
    size = {"F64": 8, "I32": 4}.get(dtype, 1)
    file = SafetensorsFile(write_tensors(tmp_path / "a.safetensors", {"a": Tensor(dtype, (2, 3), bytes(6 * size))}))
    assert file.tensors["a"].nbytes == 6 * size
    with refused("tensor 'a'", dtype, "expected F32, F16 or BF16"):
        file.tensors["a"].read()


@pytest.mark.parametrize("shape", [(0,), (0, 4), (4, 0), ()])
def test_empty_and_scalar_tensors_do_not_disturb_the_layout(shape: tuple[int, ...], tmp_path: Path) -> None:
    size = math.prod(shape)
    tensors = {"a": float32([1.0, 2.0]), "b": Tensor("F32", shape, bytes(4 * size)), "c": float32([3.0])}
    file = SafetensorsFile(write_tensors(tmp_path / "a.safetensors", tensors))
    assert file.tensors["b"].shape == shape
    assert file.tensors["c"].read().tolist() == [3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize(
    ("dtype", "encode"), [("F32", float32), ("F16", lambda v: Tensor("F16", v.shape, v.astype("<f2").tobytes()))]
)
def test_values_that_are_not_finite_are_named_by_index(
    value: float, dtype: str, encode: Callable[[np.ndarray], Tensor], tmp_path: Path
) -> None:
    values = np.arange(24, dtype=np.float32).reshape(2, 3, 4)
    values[1, 0, 2] = value
    tensor = SafetensorsFile(write_tensors(tmp_path / "a.safetensors", {"w": encode(values)})).tensors["w"]
    assert tensor.dtype.value == dtype
    assert tensor.rows(0, 3).tolist() == values.reshape(6, 4)[:3].tolist()
    with refused("a.safetensors", f"tensor 'w' holds {value} at [1, 0, 2]"):
        tensor.rows(2, 5)


@pytest.mark.parametrize(("stored", "value"), [(b"\x80\x7f", "inf"), (b"\x80\xff", "-inf"), (b"\x81\xff", "nan")])
@pytest.mark.parametrize("others", [1, -1])
def test_bfloat16_infinity_is_found(others: int, stored: bytes, value: str, tmp_path: Path) -> None:
    data = bytearray(bfloat16(np.full((3, 5), others)).data)
    data[2 * 7 : 2 * 8] = stored
    path = write_tensors(tmp_path / "a.safetensors", {"w": Tensor("BF16", (3, 5), bytes(data))})
    with refused(f"holds {value} at [1, 2]"):
        SafetensorsFile(path).tensors["w"].read()


def test_every_bfloat16_and_float16_widens_exactly(tmp_path: Path) -> None:
    bits = np.arange(65536, dtype="<u2")
    finite = {"BF16": bits[(bits & 0x7F80) != 0x7F80], "F16": bits[(bits & 0x7C00) != 0x7C00]}
    tensors = {name: Tensor(name, found.shape, found.tobytes()) for name, found in finite.items()}
    read = SafetensorsFile(write_tensors(tmp_path / "a.safetensors", tensors)).tensors
    wide = (finite["BF16"].astype(np.uint32) << 16).view(np.float32)
    assert read["BF16"].read().tobytes() == wide.tobytes()
    assert read["F16"].read().tobytes() == finite["F16"].view("<f2").astype(np.float32).tobytes()


def test_unaligned_tensors_are_read(tmp_path: Path) -> None:
    header = {"a": entry([1], 0, 1, "U8"), "b": entry([2], 1, 9), "c": entry([1], 9, 11, "BF16")}
    path = tmp_path / "a.safetensors"
    path.write_bytes(with_header(header, b"\7" + float32([1.5, -2.5]).data + bfloat16([3.0]).data))
    tensors = SafetensorsFile(path).tensors
    assert tensors["b"].read().tolist() == [1.5, -2.5]
    assert tensors["c"].read().tolist() == [3.0]


@st.composite
def named_arrays(draw: st.DrawFn) -> dict[str, np.ndarray]:
    names = draw(st.lists(st.text("abc.0", min_size=1, max_size=8), unique=True, min_size=1, max_size=6))
    seed = draw(st.integers(0, 2**32 - 1))
    generator = np.random.default_rng(seed)
    shapes = st.lists(st.integers(1, 5), min_size=1, max_size=4)
    dtypes = st.sampled_from([np.float32, np.float16])
    return {name: generator.standard_normal(draw(shapes)).astype(draw(dtypes)) for name in names}


@given(arrays=named_arrays(), metadata=st.none() | st.just({"format": "pt", "é": "ü"}))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_files_of_the_safetensors_library_are_read(
    arrays: dict[str, np.ndarray], metadata: dict[str, str] | None, tmp_path: Path
) -> None:
    from safetensors.numpy import save_file

    path = tmp_path / "library.safetensors"
    save_file(arrays, path, metadata=metadata)
    tensors = SafetensorsFile(path).tensors
    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert tensors[name].shape == array.shape
        assert np.array_equal(tensors[name].read(), array.astype(np.float32))


@given(cut=st.integers(0, len(ONE) - 1))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_file_cut_anywhere_is_refused(cut: int, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(ONE[:cut])
    with refused(path):
        SafetensorsFile(path)
