"""Streaming writes a tensor that passes as the source stores it, whatever its ranges, and encodes any other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.dtypes import DType
from lfm_convert.quantize.encoding import Encoding, get_encoding
from lfm_convert.quantize.stored import StoredPart
from lfm_convert.targets.encoded import SourceTensor
from lfm_convert.targets.plans import Placement, TensorPlan
from lfm_convert.targets.stream import Execution, prepare_file, write_tensors

N_ROWS, N_COLS = 24, 256


@pytest.fixture
def values() -> np.ndarray:
    return np.random.default_rng(3).normal(0, 0.02, (N_ROWS, N_COLS)).astype(np.float32)


def stored(folder: Path, name: str, values: np.ndarray) -> SourceTensor:
    encoding = get_encoding(name)
    parts = []
    for i, array in enumerate(encoding.encode(values)):
        path = folder / f"{name}.{i}"
        path.write_bytes(np.ascontiguousarray(array).tobytes())
        parts.append(StoredPart(path, 0))
    return SourceTensor("t", values.shape, encoding, tuple(parts), DType.F16)


def written(view: SourceTensor, encoding: Encoding, folder: Path, *, range_bytes: int) -> tuple[TensorPlan, np.ndarray]:
    """The plan, and the values that its file stands for."""
    parts = encoding.parts(N_COLS)
    plan = TensorPlan(
        name="t", role=None, layer=None, shape=view.shape, encoding=encoding, view=view,
        placements=tuple(Placement(f"out.{i}", 0) for i in range(len(parts))),
    )  # fmt: skip
    for place, part in zip(plan.placements, parts, strict=True):
        prepare_file(folder / place.path, header=b"", n_bytes=N_ROWS * part.row_nbytes)
    write_tensors([plan], folder, Execution(jobs=2, range_bytes=range_bytes))
    arrays = [
        np.fromfile(folder / place.path, part.dtype).reshape(N_ROWS, *part.row_shape)
        for place, part in zip(plan.placements, parts, strict=True)
    ]
    return plan, encoding.decode(*arrays)


@pytest.mark.parametrize("range_bytes", [4 * N_COLS, 7 * 4 * N_COLS, 1 << 20])
@pytest.mark.parametrize(("name", "target"), [("Q4_0", "affine4_g32_f16"), ("Q8_0", "Q8_0"), ("Q4_K", "Q4_K")])
def test_passes(name: str, target: str, values: np.ndarray, range_bytes: int, tmp_path: Path) -> None:
    view = stored(tmp_path, name, values)
    plan, found = written(view, get_encoding(target), tmp_path, range_bytes=range_bytes)
    assert plan.passes
    assert np.array_equal(found, view.read())


def test_what_cannot_hold_the_grid_is_encoded_anew(values: np.ndarray, tmp_path: Path) -> None:
    view = stored(tmp_path, "Q4_0", values)
    plan, found = written(view, get_encoding("affine4_g32_bf16"), tmp_path, range_bytes=1 << 20)
    assert not plan.passes
    expected = plan.encoding.decode(*plan.encoding.encode(view.read()))
    assert np.array_equal(found, expected) and not np.array_equal(found, view.read())
