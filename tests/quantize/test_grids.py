"""Grids: what an encoding says of its codes is what it decodes, and what it holds of others' it holds unchanged."""

from __future__ import annotations

import numpy as np
import pytest
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.grid import Grid, GridRows
from lfm_convert.quantize.encoding import encoding_names, get_encoding
from lfm_convert.quantize.grids import OnGrid

N_ROWS, N_COLS = 8, 256
FROM_GGUF = ("Q4_0", "Q5_0", "Q8_0", "Q4_1", "Q5_1")
# By hand from what each format can say: these and no others take each other's grids.
SYMMETRIC_4 = {
    "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "int4_block32_f32", "int4_block32_f16", "int8_block32_f32", "int8_block32_f16",
    "coreml_int4",
    "et_embed4_g32", "et_tiles4_g32",
    *(f"affine{bits}_g32_{ending}" for bits in (4, 5, 6, 8) for ending in ("f16", "f32")),
    *(f"ct_{kind}_{ending}" for kind in ("int4_g32", "int4_g32_asym", "int8_g32") for ending in ("f16", "f32")),
}  # fmt: skip
HOLDERS = {
    "Q4_0": SYMMETRIC_4,
    "Q8_0": {"Q8_0", "int8_block32_f32", "int8_block32_f16", "affine8_g32_f16", "affine8_g32_f32", "ct_int8_g32_f16", "ct_int8_g32_f32"},
    "Q4_1": {"Q4_1", "Q5_1", *(f"affine{bits}_g32_{ending}" for bits in (4, 5, 6, 8) for ending in ("f16", "f32"))},
    "affine4_g64_f16": {
        "Q4_1", "Q5_1",
        *(f"affine{bits}_g{g}_{end}" for bits in (4, 5, 6, 8) for g in (32, 64) for end in ("f16", "f32")),
    },
    "affine4_g64_bf16": {f"affine{b}_g{g}_{end}" for b in (4, 5, 6, 8) for g in (32, 64) for end in ("bf16", "f32")},
}  # fmt: skip


def on_grid() -> list[OnGrid]:
    return [found for name in encoding_names() if isinstance(found := get_encoding(name), OnGrid)]


def drawn(grid: Grid, *, seed: int = 0) -> GridRows:
    """Every code, scales of both signs that the type holds, and a group of zeros."""
    random, n_groups = np.random.default_rng(seed), N_COLS // grid.group
    codes = random.integers(0, grid.top + 1, (N_ROWS, N_COLS), dtype=np.uint8)
    scales = random.normal(0, 0.01, (N_ROWS, n_groups)).astype(np.float16).astype(np.float32)
    offsets = random.normal(0, 0.1, (N_ROWS, n_groups)).astype(np.float16).astype(np.float32)
    if grid.scales is DType.BF16:
        scales, offsets = (
            (each.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32) for each in (scales, offsets)
        )
    scales[0, 0] = 0
    shifts = np.full_like(scales, grid.zero) if grid.zero is not None else offsets
    if grid.zero is None and not grid.has_offsets:
        shifts = random.integers(0, grid.top + 1, scales.shape).astype(np.float32)
    return GridRows(codes, scales, shifts)


def meant(grid: Grid, rows: GridRows) -> np.ndarray:
    """The values of rows on a grid, by the formula, in float64 rounded once."""
    codes = rows.codes.reshape(N_ROWS, -1, grid.group).astype(np.float64)
    scales, shifts = (each.astype(np.float64)[..., None] for each in (rows.scales, rows.shifts))
    values = codes * scales + shifts if grid.has_offsets else (codes - shifts) * scales
    return values.astype(np.float32).reshape(N_ROWS, N_COLS)


@pytest.mark.parametrize("encoding", on_grid(), ids=lambda e: e.name)
def test_own_grid_is_what_is_decoded(encoding: OnGrid) -> None:
    rows = drawn(encoding.grid)
    parts = encoding.from_grid(encoding.grid, rows)
    for part, planned in zip(parts, encoding.parts(N_COLS), strict=True):
        assert (part.shape[1:], part.dtype) == (planned.row_shape, planned.dtype) or part.nbytes == (
            N_ROWS * planned.row_nbytes // encoding.tile_rows * encoding.tile_rows
        )
    found = encoding.to_grid(*parts)
    for each, wanted in zip(found, rows, strict=True):
        assert np.array_equal(each, wanted)
    values = meant(encoding.grid, rows)
    if encoding.name.startswith("coreml"):  # whose operation gives float16
        values = values.astype(np.float16).astype(np.float32)
    assert np.allclose(encoding.decode(*parts), values, rtol=2**-22, atol=1e-9)


@pytest.mark.parametrize("name", HOLDERS)
def test_who_holds_whose_grid(name: str) -> None:
    source = get_encoding(name)
    assert isinstance(source, OnGrid)
    assert {encoding.name for encoding in on_grid() if encoding.holds(source.grid)} == HOLDERS[name]


@pytest.mark.parametrize("name", [*FROM_GGUF, "affine4_g64_f16", "affine3_g128_bf16", "affine8_g32_f16"])
def test_values_stay_bit_for_bit(name: str) -> None:
    source = get_encoding(name)
    assert isinstance(source, OnGrid)
    rows = drawn(source.grid, seed=1)
    values = source.decode(*source.from_grid(source.grid, rows))
    holders = [encoding for encoding in on_grid() if encoding.holds(source.grid)]
    assert len(holders) > 1
    for encoding in holders:
        found = encoding.decode(*encoding.from_grid(source.grid, rows))
        if encoding.name.startswith("coreml"):
            assert np.array_equal(found, values.astype(np.float16).astype(np.float32))
        else:  # zeros may change their sign, which no product sees
            assert np.array_equal(found, values), encoding.name


def test_from_an_encoder_of_floats() -> None:
    values = np.random.default_rng(2).normal(0, 0.02, (N_ROWS, N_COLS)).astype(np.float32)
    source, target = get_encoding("Q4_0"), get_encoding("affine4_g32_f16")
    assert isinstance(source, OnGrid) and isinstance(target, OnGrid)
    parts = source.encode(values)
    passed = target.from_grid(source.grid, source.to_grid(*parts))
    assert np.array_equal(target.decode(*passed), source.decode(*parts))
    again = target.encode(source.decode(*parts))
    assert not np.array_equal(target.decode(*again), source.decode(*parts))  # what encoding anew would have cost


def test_a_bias_by_hand() -> None:
    block = np.zeros(18, np.uint8)
    block[:2] = np.array([-0.5], "<f2").view(np.uint8)
    block[2:] = np.arange(16, dtype=np.uint8) | (15 - np.arange(16, dtype=np.uint8)) << 4
    source, target = get_encoding("Q4_0"), get_encoding("affine4_g32_f16")
    assert isinstance(source, OnGrid) and isinstance(target, OnGrid)
    weight, scales, biases = target.from_grid(source.grid, source.to_grid(block[None]))
    assert (scales.tolist(), biases.tolist()) == ([[-0.5]], [[4.0]])
    assert weight.tolist() == [[0x76543210, 0xFEDCBA98, 0x89ABCDEF, 0x01234567]]


def test_an_offset_beyond_its_type_is_refused() -> None:
    source, target = get_encoding("Q4_0"), get_encoding("affine4_g32_f16")
    assert isinstance(source, OnGrid) and isinstance(target, OnGrid)
    rows = GridRows(np.zeros((1, 32), np.uint8), np.full((1, 1), 60000, np.float32), np.full((1, 1), 8, np.float32))
    with pytest.raises(InputError, match="an offset of 480000 is beyond F16"):
        target.from_grid(source.grid, rows)
