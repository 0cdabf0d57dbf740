"""MLX's formats: golden bytes, hand vectors, bounds, refinement, and MLX's own encoder value for value."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lfm_convert.quantize.encoding import Encoding, get_encoding
from lfm_convert.quantize.encodings.mlx_affine import BITS, GROUPS
from lfm_convert.quantize.encodings.mlx_pack import pack, unpack

AFFINE = [f"affine{bits}_g{group}" for bits in BITS for group in GROUPS]
TINY_FLOATS = ["mxfp4", "mxfp8", "nvfp4"]
FLOATS = ["bf16", "f16", "f32"]
ROWS = arrays(np.float32, (3, 128), elements=st.floats(-100, 100, width=16))


def test_golden_bytes_affine() -> None:
    """0 … 15 twice: the edge is 15, so code 0 stands for it and the scale is -1."""
    row = np.tile(np.arange(16, dtype=np.float32), 2)[None]
    weight, scales, biases = get_encoding("affine4_g32_f32").encode(row)
    assert weight.tobytes().hex() == "efcdab8967452301" * 2
    assert (scales.tolist(), biases.tolist()) == ([[-1.0]], [[15.0]])


def test_golden_bytes_bit_stream() -> None:
    """Codes 0 … 7 of three bits fill three bytes, the first code in the lowest bits."""
    packed = pack(np.tile(np.arange(8, dtype=np.uint8), 4)[None], 3)
    assert packed.tobytes().hex() == "88c6fa" * 4
    assert packed.shape == (1, 3)


def test_golden_bytes_mxfp4() -> None:
    """Every magnitude, both signs, and ties, which go towards zero: the scale of 6 is 2^0."""
    row = np.zeros((1, 32), np.float32)
    row[0, :12] = [0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6, 0.25, 2.5, -5]
    weight, scales = get_encoding("mxfp4_f32").encode(row)
    assert weight.tobytes().hex() == "214365970fe4" + "00" * 10
    assert scales.tolist() == [[127]]
    decoded = get_encoding("mxfp4_f32").decode(weight, scales)[0, :12]
    np.testing.assert_array_equal(decoded, [0.5, 1, 1.5, 2, 3, 4, 6, -0.5, -6, 0, 2, -4])


def test_golden_bytes_mxfp8_and_nvfp4() -> None:
    """448 is E4M3's largest and 2^-9 its least; nvfp4's scale of 12 / 6 is E4M3's 2, byte 0x40."""
    row = np.zeros((1, 32), np.float32)
    row[0, :4] = [448, 2.0**-9, -0.0, -1]
    weight, scales = get_encoding("mxfp8_f32").encode(row)
    assert (weight.tobytes()[:4].hex(), scales.tolist()) == ("7e0180b8", [[127]])
    row[0, :4] = [12, -6, 0, 1]
    weight, scales = get_encoding("nvfp4_f32").encode(row)
    assert (weight.tobytes()[:2].hex(), scales.tolist()) == ("d710", [[0x40, 0]])


@pytest.mark.parametrize("bits", BITS)
@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_packing_is_a_bit_stream(bits: int, data: st.DataObject) -> None:
    codes = data.draw(arrays(np.uint8, (2, 64), elements=st.integers(0, 2**bits - 1)))
    packed = pack(codes, bits)
    for row, words in zip(codes, packed, strict=True):
        whole = sum(int(code) << (bits * i) for i, code in enumerate(row))
        assert words.tobytes() == whole.to_bytes(8 * bits, "little")
    np.testing.assert_array_equal(unpack(packed, bits), codes)


@pytest.mark.parametrize("stem", [*AFFINE, *TINY_FLOATS])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -1.0, 1000.0, 1e-30], ids=str)
def test_constant_groups(stem: str, value: float) -> None:
    encoding = get_encoding(f"{stem}_bf16")
    decoded = encoding.decode(*encoding.encode(np.full((2, 128), value, np.float32)))
    np.testing.assert_allclose(decoded, value, rtol=0.1, atol=1e-7)


@pytest.mark.parametrize("stem", ["affine8_g64", "affine3_g32", "mxfp8", "nvfp4"])
@pytest.mark.parametrize("ending", ["bf16", "f32", "bf16_refined"])
@given(rows=ROWS)
@settings(max_examples=20, deadline=None)
def test_size_rows_and_error_bound(stem: str, ending: str, rows: np.ndarray) -> None:
    encoding = get_encoding(f"{stem}_{ending}")
    parts = encoding.encode(rows)
    for index, (part, values) in enumerate(zip(encoding.parts(128), parts, strict=True)):
        assert (values.dtype, values.nbytes) == (part.dtype, 3 * part.row_nbytes)
        apart = [encoding.encode(rows[i : i + 1])[index] for i in range(3)]
        np.testing.assert_array_equal(values, np.concatenate(apart))
    groups = rows.reshape(-1, encoding.block)
    error = np.square(encoding.decode(*parts).reshape(groups.shape) - groups).sum(-1)
    assert (error <= encoding.block * np.square(_step(encoding, groups)) + 1e-9).all()


def _step(encoding: Encoding, groups: np.ndarray) -> np.ndarray:
    """What rounding may cost an element: a step, and what a 16-bit scale and bias lose."""
    largest = np.abs(groups).max(-1)
    if encoding.name.startswith("affine"):
        span = np.maximum(groups.max(-1), 0) - np.minimum(groups.min(-1), 0)
        return span / (2 ** int(encoding.name[6]) - 1) + largest / 64
    # nvfp4's own scale is E4M3, whose least step is 2^-9: half of it, times the largest code of 6
    return largest / (12 if "mxfp8" in encoding.name else 4) + 6 * 2.0**-10


@pytest.mark.parametrize("stem", [*AFFINE, *TINY_FLOATS])
@pytest.mark.parametrize("ending", FLOATS)
def test_refined_is_never_worse(stem: str, ending: str) -> None:
    exact, refined = get_encoding(f"{stem}_{ending}"), get_encoding(f"{stem}_{ending}_refined")
    assert exact.parts(256) == refined.parts(256)
    generator = np.random.default_rng(0)
    importance = generator.uniform(0, 4, 256).astype(np.float32)
    for rows in _distributions(generator, (8, 256)):
        for weights in (None, importance):
            parts = refined.encode(rows, weights)
            error = [_group_errors(exact, rows, encoded, weights) for encoded in (parts, exact.encode(rows))]
            assert (error[0] <= error[1] * (1 + 1e-5)).all()


def _group_errors(encoding: Encoding, rows: np.ndarray, parts: tuple, weights: np.ndarray | None) -> np.ndarray:
    error = np.square(encoding.decode(*parts).astype(np.float64) - rows) * (1 if weights is None else weights)
    return error.reshape(-1, encoding.block).sum(-1)


@pytest.mark.parametrize(
    ("stem", "share"), [("affine8_g64", 0.75), ("affine4_g64", 0.95), ("mxfp4", 0.97), ("nvfp4", 0.9)]
)
def test_refined_lowers_the_error(stem: str, share: float) -> None:
    rows = np.random.default_rng(1).standard_normal((64, 512)).astype(np.float32)
    exact, refined = get_encoding(f"{stem}_bf16"), get_encoding(f"{stem}_bf16_refined")
    error = [np.linalg.norm(e.decode(*e.encode(rows)) - rows) for e in (exact, refined)]
    assert error[1] < share * error[0]


def test_importance_moves_the_error() -> None:
    """Columns that weigh more get closer, at the cost of the others."""
    generator = np.random.default_rng(2)
    rows = generator.standard_normal((64, 128)).astype(np.float32)
    importance = np.where(np.arange(128) % 8 == 0, 100, 1).astype(np.float32)
    refined = get_encoding("affine3_g64_bf16_refined")
    plain, weighed = (np.square(refined.decode(*refined.encode(rows, w)) - rows) for w in (None, importance))
    assert weighed[:, ::8].sum() < 0.7 * plain[:, ::8].sum()
    assert weighed.sum() > plain.sum()


def _distributions(generator: np.random.Generator, shape: tuple[int, int]) -> Iterator[np.ndarray]:
    normal = generator.standard_normal(shape).astype(np.float32)
    yield normal * np.float32(0.02)
    yield -np.abs(normal)
    yield np.abs(normal)
    yield np.zeros(shape, np.float32)
    yield np.broadcast_to(normal[:, :1], shape)
    yield normal * (generator.random(shape) < 0.05)
    yield np.rint(normal * 4) / np.float32(2)
    yield generator.standard_t(2, shape).astype(np.float32)
    yield normal * np.where(generator.random(shape) < 0.01, np.float32(100), np.float32(1))


@pytest.mark.peers
@pytest.mark.parametrize("ending", FLOATS)
@pytest.mark.parametrize("stem", [*AFFINE, *TINY_FLOATS])
def test_values_are_those_of_mlx(stem: str, ending: str) -> None:
    """Nine distributions, as a matrix and as a stack: 972 cases of the affine formats, 162 of the others."""
    import mlx.core as mx

    dtype = {"bf16": mx.bfloat16, "f16": mx.float16, "f32": mx.float32}[ending]
    encoding = get_encoding(f"{stem}_{ending}")
    bits = int(stem[6]) if stem.startswith("affine") else {"mxfp8": 8}.get(stem, 4)
    mode = {"group_size": encoding.block, "bits": bits, "mode": "affine" if stem.startswith("affine") else stem}
    for values in _distributions(np.random.default_rng(0), (6, 256)):
        weight = mx.array(np.ascontiguousarray(values)).astype(dtype)
        rows = np.array(weight.astype(mx.float32))
        mine = encoding.encode(rows)
        for shape in ((6, 256), (2, 3, 256)):
            theirs = mx.quantize(weight.reshape(shape), **mode)
            for part, stored in zip(mine, theirs, strict=True):
                raw = np.array(stored.view(mx.uint16) if stored.dtype == mx.bfloat16 else stored)
                np.testing.assert_array_equal(part.reshape(raw.shape).view(np.uint8), raw.view(np.uint8))
        wide = [part if mx.issubdtype(part.dtype, mx.integer) else part.astype(mx.float32) for part in theirs]
        decoded = np.array(mx.dequantize(*wide, **mode).astype(mx.float32)).reshape(rows.shape)
        np.testing.assert_allclose(encoding.decode(*mine), decoded, rtol=1e-6, atol=1e-6 * np.abs(rows).max())


@pytest.mark.peers
@pytest.mark.parametrize("stem", TINY_FLOATS)
@pytest.mark.parametrize("ending", ["bf16", "f16"])
def test_every_16_bit_maximum_has_the_scale_of_mlx(stem: str, ending: str) -> None:
    """Each 16-bit number of 2^-100 … 2^16 as the largest of a group; outside, MLX's own codes fall to 0 or infinity."""
    import mlx.core as mx

    encoding = get_encoding(f"{stem}_{ending}")
    if ending == "bf16":
        largest = (np.arange(27 << 7, 143 << 7, dtype=np.uint32) << 16).view(np.float32)
    else:
        largest = np.arange(1, 0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    largest = largest[: len(largest) // 2 * 2].reshape(-1, 2)
    rows = np.zeros((len(largest), 32), np.float32)
    rows[:, 0], rows[:, 16] = largest[:, 0], largest[:, 1]
    weight = mx.array(rows).astype(mx.bfloat16 if ending == "bf16" else mx.float16)
    theirs = mx.quantize(weight, group_size=encoding.block, bits=8 if stem == "mxfp8" else 4, mode=stem)
    for part, stored in zip(encoding.encode(rows), theirs, strict=True):
        np.testing.assert_array_equal(part, np.array(stored))
