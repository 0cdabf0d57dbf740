"""Committed grids: what an encoding says its codes stand for is what it decodes, and other codes go in on the same scales."""

from __future__ import annotations

import numpy as np
import pytest
from lfm_convert.quantize.committed import Tunable
from lfm_convert.quantize.encoding import encoding_names, get_encoding

N_ROWS, N_COLS = 16, 512
# What no code can be chosen in: floats, and tables that are themselves what was searched.
FIXED = {"F32", "F16", "BF16", "coreml_pal4", *(f"ct_fp8_{end}" for end in ("bf16", "f16", "f32"))}


def tunable() -> list[Tunable]:
    return [found for name in encoding_names() if isinstance(found := get_encoding(name), Tunable)]


def rows() -> np.ndarray:
    values = np.random.default_rng(3).standard_t(4, (N_ROWS, N_COLS)).astype(np.float32) * np.float32(0.02)
    values[1] = 0
    values[2, :32] = 0
    return values


def test_every_encoding_of_codes_can_be_tuned() -> None:
    rest = {name for name in encoding_names() if not isinstance(get_encoding(name), Tunable)}
    assert {name for name in rest if not name.startswith("ct_fp8")} == {n for n in FIXED if not n.startswith("ct_fp8")}


@pytest.mark.parametrize("encoding", tunable(), ids=lambda e: e.name)
def test_codes_are_what_is_decoded(encoding: Tunable) -> None:
    parts = encoding.encode(rows())
    found = encoding.committed(*parts)
    assert found.codes.shape == (N_ROWS, N_COLS) and N_COLS % found.scales.shape[1] == 0
    assert np.array_equal(encoding.values(found), encoding.decode(*parts))
    assert not np.isnan(encoding.levels[found.codes]).any()
    for again, before in zip(encoding.recoded(parts, found), parts, strict=True):
        assert again.dtype == before.dtype and again.shape == before.shape and again.tobytes() == before.tobytes()


@pytest.mark.parametrize("encoding", tunable(), ids=lambda e: e.name)
def test_other_codes_go_in_on_the_same_scales(encoding: Tunable) -> None:
    parts = encoding.encode(rows())
    before = [part.copy() for part in parts]
    allowed = np.flatnonzero(np.isfinite(encoding.levels)).astype(np.uint8)
    found = encoding.committed(*parts)
    drawn = found._replace(codes=np.random.default_rng(4).choice(allowed, found.codes.shape))
    stored = encoding.recoded(parts, drawn)
    for part, old in zip(parts, before, strict=True):
        assert np.array_equal(part, old)  # what was given is not written to
    again = encoding.committed(*stored)
    assert np.array_equal(again.codes, drawn.codes) and np.array_equal(again.scales, found.scales)
    assert np.array_equal(encoding.decode(*stored), encoding.values(drawn))


@pytest.mark.parametrize("encoding", [e for e in tunable() if e.refits is not None], ids=lambda e: e.name)
def test_other_scales_go_in_where_the_format_has_them(encoding: Tunable) -> None:
    parts = encoding.encode(rows())
    found = encoding.committed(*parts)
    halved = found._replace(
        scales=found.scales / 2, offsets=None if found.offsets is None else found.offsets / np.float32(2)
    )
    assert np.array_equal(encoding.decode(*encoding.recoded(parts, halved)), encoding.values(halved))
