"""ExecuTorch's symmetric integers: bytes by hand, error bounds, and its own operator's reading of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.errors import InputError
from lfm_convert.quantize.encoding import get_encoding

NAMES = ("et_int4_g32", "et_int4_g64", "et_int4_g128", "et_int8", "et_embed4_g32", "et_embed8")


def test_nibbles_by_hand() -> None:
    row = np.zeros((1, 32), np.float32)
    row[0, :4] = [7, -8, 1, 0]
    values, scales = get_encoding("et_int4_g32").encode(row)
    assert scales.tolist() == [[0x3F80]]  # 1.0 in bfloat16
    assert values[0, :3].tolist() == [0x0F, 0x89, 0x88]
    values, scales = get_encoding("et_embed4_g32").encode(row)
    assert scales.tolist() == [[1.0]]
    assert values[0, :3].tolist() == [0xF0, 0x98, 0x88]


def test_bytes_by_hand() -> None:
    values, scales = get_encoding("et_int8").encode(np.array([[-127, 64, -0.0, 1]], np.float32))
    assert values.tolist() == [[-127, 64, 0, 1]]
    assert scales.tolist() == [[1.0]]


@pytest.mark.parametrize("name", NAMES)
def test_zeros_and_the_smallest_numbers(name: str) -> None:
    """A scale is positive and normal, as XNNPACK demands, even where there is nothing to scale."""
    rows = np.zeros((3, 128), np.float32)
    rows[1, 0], rows[2, 0] = 1e-45, -1e-45
    encoding = get_encoding(name)
    parts = encoding.encode(rows)
    assert np.abs(encoding.decode(*parts)).max() < 1e-3
    one = tuple(np.ones_like(part) if part.dtype != np.uint8 else part * 0 + 0x99 for part in parts[:1])
    assert (np.abs(encoding.decode(*one, parts[1])) > 0).all()


def test_scale_beyond_half_precision() -> None:
    with pytest.raises(InputError, match="choose a wider encoding"):
        get_encoding("et_embed4_g32").encode(np.full((1, 32), 1e6, np.float32))


@pytest.mark.parametrize("name", NAMES)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.integers(-3, 4))
def test_error_is_at_most_half_a_step(name: str, seed: int, exponent: int) -> None:
    """Of the plain scale, the extreme over the last code; the search may only do better in square."""
    rows = np.random.default_rng(seed).standard_normal((4, 256)).astype(np.float32) * np.float32(10.0**exponent)
    encoding = get_encoding(name)
    parts = encoding.encode(rows)
    for part, declared in zip(parts, encoding.parts(256), strict=True):
        assert (part.dtype, part.shape) == (declared.dtype, (4, *declared.row_shape))
    group, last = (encoding.block, 7) if encoding.class_name == "q4" else (256, 127)
    blocks = rows.reshape(4, -1, group)
    step = np.abs(blocks).max(axis=-1) / last
    error = (encoding.decode(*parts) - rows).reshape(blocks.shape)
    assert (np.square(error).sum(axis=-1) <= group * np.square(step / 2) * 1.02).all()


@pytest.mark.peers
@pytest.mark.parametrize(
    ("name", "operator", "limits"),
    [("et_embed4_g32", "embedding_4bit", (-8, 7)), ("et_embed8", "embedding_byte", (-128, 127))],
)
def test_embedding_operator_reads_the_same(name: str, operator: str, limits: tuple[int, int]) -> None:
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401
    import torch

    rows = np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)
    encoding = get_encoding(name)
    values, scales = encoding.encode(rows)
    table, factors = torch.from_numpy(values), torch.from_numpy(scales)
    look_up = getattr(torch.ops.quantized_decomposed, operator).dtype
    found = look_up(table, factors, None, *limits, torch.arange(8), dtype=torch.float32)
    # what torch runs here multiplies in the width of the scales; the kernel of the runtime does so in float32
    np.testing.assert_allclose(found.numpy(), encoding.decode(values, scales), rtol=1e-3)
