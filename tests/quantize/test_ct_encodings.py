"""compressed-tensors' formats: stored numbers by hand, and of every scheme the library's own, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import Weight
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import DeclaredTensor
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.quantize.encodings.ct_base import CtEncoding
from lfm_convert.quantize.encodings.ct_fp4 import NvFp4
from lfm_convert.quantize.policies.compressed_tensors import POLICIES, ct_policy, parse_quant, writable_quant

STEMS = (
    "ct_int4_g32", "ct_int4_g64", "ct_int4_g128", "ct_int4_g32_asym", "ct_int4_g128_asym", "ct_int8_g128", "ct_int8",
    "ct_fp8", "ct_fp8_block", "ct_mxfp4", "ct_nvfp4",
)  # fmt: skip
# Scheme of the library -> our encoding, and what of its weights' arguments is another.
PRESETS = {
    "ct_int4_g128": ("W4A16", {}),
    "ct_int4_g64": ("W4A16", {"group_size": 64}),
    "ct_int4_g32": ("W4A16", {"group_size": 32}),
    "ct_int4_g128_asym": ("W4A16_ASYM", {}),
    "ct_int4_g32_asym": ("W4A16_ASYM", {"group_size": 32}),
    "ct_int8_g128": ("W8A16", {}),
    "ct_int8": ("W8A8", {}),
    "ct_fp8": ("FP8_DYNAMIC", {}),
    "ct_fp8_block": ("FP8_BLOCK", {}),
    "ct_mxfp4": ("MXFP4", {}),
    "ct_nvfp4": ("NVFP4A16", {}),
}
_COLUMNS = 256
_SHARES = {"ct_int4": 1 / 7, "ct_int8": 1 / 127, "ct_fp8": 1 / 16, "ct_mxfp4": 1 / 4, "ct_nvfp4": 1 / 4}


def _encoding(stem: str, dtype: str = "bf16") -> CtEncoding:
    found = get_encoding(f"{stem}_{dtype}")
    assert isinstance(found, CtEncoding)
    return found


def test_a_group_of_integers_by_hand() -> None:
    """7.5 steps reach as far as the largest magnitude; codes lie from the lowest bits, eight above themselves."""
    row = np.zeros((1, 32), np.float32)
    row[0, :3] = 7.5, -7.5, 1
    packed, scale = _encoding("ct_int4_g32").encode(row)
    assert scale.tolist() == [[0x3F80]]  # one
    assert packed[0].tolist() == [(0xF | 0x0 << 4 | 0x9 << 8 | 0x88888 << 12) - (1 << 32), *[-0x77777778] * 3]


def test_zero_points_of_eight_rows_share_a_word() -> None:
    rows = np.zeros((9, 32), np.float32)
    rows[0, 0], rows[1, 0], rows[8, 0] = 15, -15, -15
    packed, scale, zeros = _encoding("ct_int4_g32_asym").encode(rows)
    assert zeros.shape == (2, 1)
    # of a range from zero up the zero is the first code, of one down from zero the last; of no range the middle
    assert zeros[:, 0].view(np.uint32).tolist() == [0x888888F0, 0xF]
    assert scale[[0, 1, 8], 0].tolist() == [0x3F80] * 3
    decoded = _encoding("ct_int4_g32_asym").decode(packed, scale, zeros)
    assert decoded.tolist() == rows.tolist()


def test_floats_of_eight_bits_by_hand() -> None:
    codes, scale = _encoding("ct_fp8").encode(np.float32([[448, -1, 0, -0.0, 2**-9, 3 * 2**-10, 1.0625]]))
    assert scale.tolist() == [[0x3F80]]
    assert codes.tolist() == [[0x7E, 0xB8, 0, 0x80, 0x01, 0x02, 0x38]]  # of ties the even ones


def test_powers_of_two_by_hand() -> None:
    """The scale of 7 is one, since 7 is rounded to 6 less wrongly than to 8; that of 7.1 is two."""
    rows = np.zeros((3, 32), np.float32)
    rows[0, 0], rows[1, 0] = 6.9, -7.1
    packed, scales = _encoding("ct_mxfp4").encode(rows)
    assert scales[:, 0].tolist() == [127, 128, 0]
    assert packed[:, 0].tolist() == [0x7, 0xE, 0x0]


def test_a_scale_for_the_whole_matrix() -> None:
    encoding = _encoding("ct_nvfp4", "f32")
    assert isinstance(encoding, NvFp4)
    rows = np.zeros((1, 32), np.float32)
    rows[0, 0], rows[0, 16] = 6, 0.001
    scaled = encoding.of(encoding.global_scale_of(6.0))
    assert scaled.global_scale == 448
    packed, scales = scaled.encode(rows)
    assert scales[0, 0] == 0x7E
    np.testing.assert_allclose(scaled.decode(packed, scales)[0, [0, 16]], [6, 0.001], rtol=0.07)
    assert encoding.global_scale_of(0.0) == 1.0


@pytest.mark.parametrize("stem", STEMS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_declared_sizes_are_real_ones(stem: str, dtype: str) -> None:
    encoding = _encoding(stem, dtype)
    rows = np.random.default_rng(1).standard_normal((10, _COLUMNS), np.float32)
    parts = encoding.encode(rows)
    for values, part in zip(parts, encoding.parts(_COLUMNS), strict=True):
        assert values.dtype.itemsize == part.dtype.itemsize
        assert values.nbytes == part.offset(10, 10) == part.n_rows(10) * part.row_nbytes
    assert encoding.nbytes((10, _COLUMNS)) == sum(values.nbytes for values in parts)
    assert encoding.nbytes((3, 10, _COLUMNS)) == 3 * encoding.nbytes((10, _COLUMNS))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), stem=st.sampled_from(STEMS), size=st.sampled_from([1e-3, 1.0, 50.0]))
def test_values_come_back_to_half_a_step(seed: int, stem: str, size: float) -> None:
    encoding = _encoding(stem, "f32")
    rows = (np.random.default_rng(seed).standard_normal((9, _COLUMNS)) * size).astype(np.float32)
    if isinstance(encoding, NvFp4):
        encoding = encoding.of(encoding.global_scale_of(float(np.abs(rows).max())))
    found = encoding.decode(*encoding.encode(rows.copy()))
    # Of the largest of a group: with zero points a range is twice as wide, and the zero rounded, too.
    share = next(share for start, share in _SHARES.items() if stem.startswith(start))
    groups = (
        np.abs(each).reshape(9, -1, _COLUMNS if encoding.block == 1 else encoding.block)
        for each in (found - rows, rows)
    )
    error, sizes = (group.max(axis=-1) for group in groups)
    largest = sizes.max() if stem == "ct_fp8_block" else sizes
    assert (error <= share * largest).all()
    assert (encoding.decode(*encoding.encode(np.zeros((9, _COLUMNS), np.float32))) == 0).all()


def _hard(dtype: str) -> np.ndarray:
    """Rows of every size, and some of zeros, of one sign, of ties, of equal values and of the least there are."""
    rng = np.random.default_rng(20)
    rows = rng.standard_normal((130, 384)) * np.exp(1.5 * rng.standard_normal((130, 384)))
    rows[3], rows[5, :128], rows[6] = 0, 0, rows[6] * (1e-3 if dtype == "f16" else 1e-6)
    rows[7], rows[8], rows[9, ::2], rows[10] = np.abs(rows[7]), -np.abs(rows[8]), -0.0, 0.5
    rows[11], rows[12] = np.tile(np.arange(-8, 8) / 4, 24), rows[12] * 100
    rows[13], rows[14] = 6e-8 if dtype == "f16" else 1e-38, -7.5
    rows[15] = np.tile([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5, 6], 48)
    return rows.astype(np.float32)


@pytest.mark.peers
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
@pytest.mark.parametrize("stem", PRESETS)
def test_bytes_are_the_librarys(stem: str, dtype: str) -> None:
    """Codes, scales, zero points and global scales of rounding to the nearest, in each float type of checkpoints."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from support.compressed_tensors_peer import stored

    preset, changed = PRESETS[stem]
    kinds = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}
    matrix = torch.from_numpy(_hard(dtype)).to(kinds[dtype])
    (theirs,) = stored(preset, matrix, **changed)
    rows, encoding = matrix.float().numpy(), _encoding(stem, dtype)
    if isinstance(encoding, NvFp4):
        encoding = encoding.of(encoding.global_scale_of(float(np.abs(rows).max())))
        assert theirs["weight_global_scale"].view(np.float32) == encoding.global_scale
    parts = encoding.encode(rows.copy())
    assert theirs.keys() - {"weight_shape", "weight_global_scale"} == {part.name for part in encoding.parts(384)}
    for values, part in zip(parts, encoding.parts(384), strict=True):
        mine = np.ascontiguousarray(values).reshape(-1).view(np.uint8)
        np.testing.assert_array_equal(mine, theirs[part.name], err_msg=part.name)


@pytest.mark.parametrize(
    ("text", "name", "weights", "arithmetic"),
    [
        ("w4a16", "W4A16", "ct_int4_g128", "float32"),
        ("W4A16-g128", "W4A16", "ct_int4_g128", "float32"),
        ("W4A16-G32-ASYM", "W4A16-g32-asym", "ct_int4_g32_asym", "float32"),
        ("W8A16-g64", "W8A16-g64", "ct_int8_g64", "float32"),
        ("fp8_block", "FP8_BLOCK", "ct_fp8_block", "float8"),
        ("W8A8", "W8A8", "ct_int8", "int8"),
        ("MXFP4", "MXFP4", "ct_mxfp4", "float4"),
    ],
)
def test_grammar(text: str, name: str, weights: str, arithmetic: str) -> None:
    quant = parse_quant(text)
    assert (quant.name, quant.weights, quant.arithmetic) == (name, weights, arithmetic)


@pytest.mark.parametrize("text", ["W4A8", "W8A16-asym", "W4A16-g16", "W8A8-g32", "FP8-g32", ""])
def test_other_words_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match="expected W4A16 or W8A16"):
        parse_quant(text)


def test_what_needs_calibration_is_known_and_not_written() -> None:
    assert parse_quant("NVFP4").arithmetic == "float4"
    with pytest.raises(UsageError, match="NVFP4A16 stores the same weights"):
        writable_quant("NVFP4")


@pytest.mark.parametrize(
    ("quant", "n_cols", "used"),
    [
        ("W4A16", 256, "ct_int4_g128_bf16"),
        ("W4A16", 192, "ct_int4_g64_bf16"),
        ("W4A16-asym", 96, "ct_int4_g32_asym_bf16"),
        ("W4A16-g64", 96, "ct_int4_g32_bf16"),
        ("W4A16-g32", 48, "BF16"),
        ("FP8_BLOCK", 192, "ct_fp8_bf16"),
        ("W8A8", 48, "ct_int8_bf16"),
        ("NVFP4A16", 40, "BF16"),
    ],
)
def test_rows_that_a_group_does_not_divide(quant: str, n_cols: int, used: str) -> None:
    policy = ct_policy(parse_quant(quant), DType.BF16)
    choice = policy.choose(Weight(Role.CONV_IN, 0, DeclaredTensor("w", (30, n_cols))))
    assert choice.encoding.name == used
    assert (choice.reason is None) == (used == choice.wanted)


def test_what_stays_as_it_is() -> None:
    for policy in POLICIES:
        for role in (Role.EMBED, Role.LM_HEAD, Role.ROUTER, Role.EXPERT_BIAS, Role.CONV_KERNEL, Role.FFN_NORM):
            assert policy.choose(Weight(role, 0, DeclaredTensor("w", (8, 256)))).encoding.name == "BF16"
