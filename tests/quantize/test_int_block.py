"""Integer blocks with zero points: golden bytes, hand vectors, bounds, and ONNX Runtime's own decoding."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lfm_convert.quantize.encoding import get_encoding
from onnx import TensorProto, helper

F32 = get_encoding("int4_block32_f32")
F16 = get_encoding("int4_block32_f16")
BYTE = get_encoding("int8_block32_f32")
ALL = pytest.mark.parametrize("encoding", [F32, F16, BYTE], ids=lambda e: e.name)

ROWS = arrays(np.float32, (3, 64), elements=st.floats(-100, 100, width=32))


def test_golden_bytes() -> None:
    """-8 … 7 twice, scale 1: zero point 8 and codes 0 … 15."""
    row = np.tile(np.arange(-8, 8, dtype=np.float32), 2)[None]
    values, scales, zero_points = F32.encode(row)
    assert values.tobytes().hex() == "1032547698badcfe" * 2
    assert scales.tolist() == [[1.0]]
    assert zero_points.tolist() == [[8]]
    np.testing.assert_array_equal(F32.decode(values, scales, zero_points), row)


def test_golden_bytes_of_8_bits() -> None:
    """-1, 0 … 30 in steps of an eighth: 248 of 255 steps are used, and nothing is lost."""
    row = np.arange(-1, 31, dtype=np.float32)[None]
    values, scales, zero_points = BYTE.encode(row)
    assert values.tolist() == [[list(range(0, 256, 8))]]
    assert scales.tolist() == [[0.125]]
    assert zero_points.tolist() == [[8]]


def test_zero_points_of_an_odd_number_of_blocks() -> None:
    """The second nibble of the last byte is empty."""
    row = np.concatenate([np.full(32, -1), np.full(32, 1), np.full(32, -1)]).astype(np.float32)[None]
    _, _, zero_points = F32.encode(row)
    assert zero_points.tobytes().hex() == "0e0e"
    assert BYTE.encode(row)[2].tobytes().hex() == "ff00ff"


@ALL
@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, 1.0, -1.0, 3e4, -3e4, 1e-30],
    ids=["zero", "minus-zero", "one", "minus-one", "big", "minus-big", "tiny"],
)
def test_constant_blocks(encoding, value: float) -> None:
    decoded = encoding.decode(*encoding.encode(np.full((2, 32), value, np.float32)))
    assert np.isfinite(decoded).all()
    np.testing.assert_allclose(decoded, value, rtol=2e-3, atol=1e-7)


@ALL
@given(rows=ROWS)
@settings(max_examples=60, deadline=None)
def test_size_and_error_bound(encoding, rows: np.ndarray) -> None:
    """The search never ends above plain rounding over the range, but for what the stored scale's rounding adds."""
    parts = encoding.encode(rows)
    for part, values in zip(encoding.parts(64), parts, strict=True):
        assert values.dtype == part.dtype
        assert values.nbytes == 3 * part.row_nbytes
    blocks = rows.reshape(3, 2, 32)
    span = np.maximum(blocks.max(-1), 0) - np.minimum(blocks.min(-1), 0)
    error = np.square(encoding.decode(*parts) - rows).reshape(3, 2, 32).sum(-1)
    levels = 2**encoding.bits - 1
    plain = 32 * np.square(span / levels / 2 + 1e-6)  # the error of rounding to an even grid over the range
    assert (error <= 4.1 * plain + 1e-9).all()


@given(rows=ROWS)
@settings(max_examples=40, deadline=None)
def test_rows_are_independent(rows: np.ndarray) -> None:
    whole = F32.encode(rows)
    apart = [F32.encode(rows[i : i + 1]) for i in range(3)]
    for index, part in enumerate(whole):
        np.testing.assert_array_equal(part, np.concatenate([a[index] for a in apart]))


@ALL
@pytest.mark.parametrize("n_cols", [32, 96, 256])
def test_search_beats_plain_rounding(encoding, n_cols: int) -> None:
    rows = np.random.default_rng(0).standard_t(5, (64, n_cols)).astype(np.float32)
    blocks = rows.reshape(64, -1, 32)
    low, high = np.minimum(blocks.min(-1), 0)[..., None], np.maximum(blocks.max(-1), 0)[..., None]
    top = 2**encoding.bits - 1
    scale = (high - low) / top
    zero = np.rint(-low / scale)
    plain = (np.clip(np.rint(blocks / scale) + zero, 0, top) - zero) * scale
    found = encoding.decode(*encoding.encode(rows)).reshape(blocks.shape)
    share = {4: 0.94, 8: 0.85}[encoding.bits]
    assert np.square(found - blocks).sum() < share * np.square(plain - blocks).sum()


@ALL
def test_importance_weighs_columns(encoding) -> None:
    """The weighted error falls, columns without weight do not count, and equal weights change nothing."""
    rows = np.random.default_rng(2).standard_t(5, (64, 96)).astype(np.float32)
    importance = np.random.default_rng(3).exponential(1, 96).astype(np.float32) ** 2
    importance[:32] = 0

    def error(parts: tuple[np.ndarray, ...]) -> float:
        return float((importance * np.square(encoding.decode(*parts) - rows)).sum())

    plain = encoding.encode(rows)
    assert error(encoding.encode(rows, importance)) < (0.93 if encoding.bits == 4 else 1.0) * error(plain)
    for one, other in zip(plain, encoding.encode(rows, np.full(96, 0.25, np.float32)), strict=True):
        np.testing.assert_array_equal(one, other)
    for one, other in zip(plain, encoding.encode(rows, np.zeros(96, np.float32)), strict=True):
        np.testing.assert_array_equal(one, other)


def test_scale_beyond_float16_is_infinite() -> None:
    """So that the writer, which refuses infinity, names the tensor."""
    _, scales, _ = F16.encode(np.full((1, 32), 1e6, np.float32))
    assert np.isinf(scales).all()


@pytest.mark.peers
@pytest.mark.parametrize("encoding", [F32, BYTE], ids=lambda e: e.name)
@pytest.mark.parametrize("n_cols", [32, 64, 96])
def test_onnx_runtime_decodes_the_same(encoding, n_cols: int) -> None:
    """MatMulNBits of the identity is the decoded matrix."""
    rows = np.random.default_rng(1).normal(size=(7, n_cols)).astype(np.float32)
    parts = encoding.encode(rows)
    node = helper.make_node(
        "MatMulNBits", ["x", "values", "scales", "zero_points"], ["y"],
        domain="com.microsoft", K=n_cols, N=7, bits=encoding.bits, block_size=32,
    )  # fmt: skip
    names = [part.name for part in encoding.parts(n_cols)]
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [n_cols, n_cols])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [n_cols, 7])],
        [helper.make_tensor(n, TensorProto.FLOAT if n == "scales" else TensorProto.UINT8, p.shape, p.tobytes(), raw=True)
         for n, p in zip(names, parts, strict=True)],
    )  # fmt: skip
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    session = onnxruntime.InferenceSession(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    (found,) = session.run(None, {"x": np.eye(n_cols, dtype=np.float32)})
    np.testing.assert_allclose(found.T, encoding.decode(*parts), atol=1e-5)
