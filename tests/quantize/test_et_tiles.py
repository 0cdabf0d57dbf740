"""Tiles of 8 rows: bytes by hand, and what `llama::quantized_moe_ffn` itself makes of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.encoding import get_encoding
from lfm_convert.targets.executorch.fused import HEADER
from lfm_convert.targets.plans import Placement, TensorPlan
from lfm_convert.targets.stream import Execution, write_tensors

TILES = get_encoding("et_tiles4_g32")


def test_bytes_by_hand() -> None:
    rows = np.zeros((8, 32), np.float32)
    rows[0, :3] = [-8, 7, 1]
    rows[2, 0], rows[0, 8], rows[3, 31] = 7, -8, 14
    (tiles,) = TILES.encode(rows)
    assert tiles.shape == (8, 24)
    flat = tiles.reshape(-1)
    # the first 32 codes are columns 0 … 7 of rows 0 … 3: row 2 lies in the high nibbles of row 0
    assert flat[:3].tolist() == [0xF0, 0x8F, 0x89]
    assert flat[32] == 0x80  # columns 8 … 15 of row 0
    assert flat[96 + 15] == 0xF8  # columns 24 … 31: row 1 low, row 3 high
    assert flat[128:160].view("<f4").tolist() == [1, 1, 1, 2, 1, 1, 1, 1]
    assert flat[160:].view("<i4").tolist() == [-8, 0, 7, 7, 0, 0, 0, 0]


@pytest.mark.parametrize("block", [32, 64, 128])
@given(seed=st.integers(0, 2**32 - 1), n_tiles=st.integers(1, 3), n_groups=st.integers(1, 4))
def test_error_is_that_of_plain_groups(block: int, seed: int, n_tiles: int, n_groups: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((8 * n_tiles, block * n_groups)).astype(np.float32)
    tiled, other = get_encoding(f"et_tiles4_g{block}"), get_encoding(f"et_int4_g{block}")
    (tiles,) = tiled.encode(rows)
    (declared,) = tiled.parts(block * n_groups)
    assert (tiles.dtype, tiles.shape) == (declared.dtype, (8 * n_tiles, *declared.row_shape))
    error, plain = (np.linalg.norm(e.decode(*e.encode(rows)) - rows) for e in (tiled, other))
    assert error <= 1.02 * plain


@pytest.mark.peers
@pytest.mark.parametrize("block", [32, 64])
def test_operator_reads_the_same(block: int) -> None:
    """One expert that every token chooses with all its weight, against the decoded matrices."""
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    import torch
    from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401

    random = np.random.default_rng(0)
    n_hidden, n_inner = 64, 192
    encoding = get_encoding(f"et_tiles4_g{block}")
    gate, up, down = (
        random.standard_normal(shape).astype(np.float32)
        for shape in ((n_inner, n_hidden), (n_inner, n_hidden), (n_hidden, n_inner))
    )
    x = random.standard_normal((5, n_hidden)).astype(np.float32)
    first, second = (
        torch.from_numpy(
            np.concatenate([np.frombuffer(HEADER, np.uint8), *(encoding.encode(w)[0].ravel() for w in both)])
        )
        for both in ((gate, up), (down,))
    )
    found = torch.ops.llama.quantized_moe_ffn(
        torch.from_numpy(x), torch.zeros(1, n_hidden), torch.zeros(1), first[None], second[None],
        1, 1, n_inner, n_hidden, block, 4, "sigmoid", 1.0,
    )  # fmt: skip
    gate, up, down = (encoding.decode(*encoding.encode(w)) for w in (gate, up, down))
    inner = x @ gate.T
    np.testing.assert_allclose(found, inner / (1 + np.exp(-inner)) * (x @ up.T) @ down.T, rtol=1e-3, atol=1e-2)


def test_ranges_keep_tiles_whole(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((40, 64)).astype(np.float32)
    plan = TensorPlan(
        name="experts", role=None, layer=None, shape=rows.shape, encoding=TILES, view=ArrayTensor("experts", rows),
        placements=(Placement("tiles", 0),),
    )  # fmt: skip
    for range_bytes in (1, 12 * 64 * 4, 1 << 20):
        (tmp_path / "tiles").write_bytes(b"")
        write_tensors([plan], tmp_path, Execution(jobs=2, range_bytes=range_bytes))
        assert (tmp_path / "tiles").read_bytes() == TILES.encode(rows)[0].tobytes()
