"""Views: any range of rows is that range of the whole, across every boundary."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lfm_convert.graph.dtypes import DType, to_bfloat16
from lfm_convert.graph.grid import Grid, GridRows
from lfm_convert.graph.tensor import (
    ArrayTensor,
    DeclaredTensor,
    ReshapedTensor,
    ScaledTensor,
    SlicedTensor,
    StackedTensor,
    TensorView,
    WindowTensor,
    ZeroTensor,
)
from lfm_convert.targets.onnx.qmoe import EveryOther, Interleaved
from support.refusals import refused

BASE = np.arange(3 * 5 * 4, dtype=np.float32).reshape(3, 5, 4) / 7


class Located(ArrayTensor):
    """Rows of `BASE`, which stands for the source's file: a place there is the index of an element."""

    def place(self, row: int) -> tuple[str, int]:
        return "base", (self._matrix.ctypes.data - BASE.ctypes.data) // BASE.itemsize + row * self.n_cols


def array(values: np.ndarray) -> ArrayTensor:
    return Located("t", np.ascontiguousarray(values))


VIEWS: dict[str, tuple[Callable[[], TensorView], np.ndarray]] = {
    "array": (lambda: array(BASE), BASE),
    "vector": (lambda: array(BASE[0, 0]), BASE[0, 0]),
    "zero": (lambda: ZeroTensor("t", (3, 4)), np.zeros((3, 4), np.float32)),
    "stacked": (lambda: StackedTensor("t", [array(part) for part in BASE]), BASE),
    "stacked-one": (lambda: StackedTensor("t", [array(BASE[1])]), BASE[1:2]),
    "stacked-vectors": (lambda: StackedTensor("t", [array(row) for row in BASE[0]]), BASE[0]),
    "sliced-front": (lambda: SlicedTensor("t", array(BASE), 0, 2), BASE[:, :2]),
    "sliced-middle": (lambda: SlicedTensor("t", array(BASE), 1, 3), BASE[:, 1:4]),
    "sliced-end": (lambda: SlicedTensor("t", array(BASE), 4, 1), BASE[:, 4:]),
    "sliced-all": (lambda: SlicedTensor("t", array(BASE), 0, 5), BASE),
    "sliced-matrix": (lambda: SlicedTensor("t", array(BASE[0]), 1, 3), BASE[0, 1:4]),
    "window": (lambda: WindowTensor("t", array(BASE), 5, (5, 4)), BASE[1]),
    "window-across": (lambda: WindowTensor("t", array(BASE), 3, (2, 2, 4)), BASE.reshape(15, 4)[3:7].reshape(2, 2, 4)),
    "reshaped": (lambda: ReshapedTensor(array(BASE), (15, 4)), BASE.reshape(15, 4)),
    "scaled": (lambda: ScaledTensor(array(BASE), 2.5), BASE * np.float32(2.5)),
    "slice-of-stack": (
        lambda: SlicedTensor("t", StackedTensor("s", [array(part) for part in BASE]), 2, 2),
        BASE[:, 2:4],
    ),
}


@pytest.mark.parametrize("view", VIEWS)
def test_every_range_of_rows_is_that_range_of_the_whole(view: str) -> None:
    make, expected = VIEWS[view]
    tensor = make()
    rows = expected.reshape(-1, expected.shape[-1])
    assert (tensor.shape, tensor.n_rows, tensor.n_cols) == (expected.shape, *rows.shape)
    assert tensor.read().tobytes() == expected.tobytes()
    for start in range(len(rows) + 1):
        for stop in range(start, len(rows) + 1):
            found = tensor.rows(start, stop)
            assert found.dtype == np.float32
            assert np.array_equal(found, rows[start:stop]), (start, stop)


@pytest.mark.parametrize("view", sorted(VIEWS.keys() - {"zero", "scaled"}))
def test_a_row_is_placed_where_the_source_has_it(view: str) -> None:
    tensor = VIEWS[view][0]()
    for row in range(tensor.n_rows):
        file, at = tensor.place(row)
        assert file == "base"
        assert np.array_equal(BASE.reshape(-1)[at : at + tensor.n_cols], tensor.rows(row, row + 1)[0])


def test_a_scaled_row_is_where_its_base_is_and_zeros_are_nowhere() -> None:
    assert VIEWS["scaled"][0]().place(7) == VIEWS["array"][0]().place(7) == ("base", 28)
    assert ZeroTensor("t", (3, 4)).place(2) == ZeroTensor("t", (3, 4)).place(0) == ("", 0)


@pytest.mark.parametrize("view", VIEWS)
def test_ranges_outside_the_tensor_are_refused(view: str) -> None:
    tensor = VIEWS[view][0]()
    for start, stop in ((-1, 1), (0, tensor.n_rows + 1), (2, 1)):
        with pytest.raises(IndexError, match=f"rows {start}:{stop}"):
            tensor.rows(start, stop)


@pytest.mark.parametrize("view", ["array", "stacked", "sliced-middle", "window", "reshaped", "slice-of-stack"])
def test_rows_are_the_callers_own(view: str) -> None:
    tensor = VIEWS[view][0]()
    tensor.rows(0, 2)[:] = -1
    assert np.array_equal(tensor.rows(0, 2), VIEWS[view][1].reshape(-1, 4)[:2])


class Liar(TensorView):
    """Yields something else than it declares."""

    def __init__(self, values: np.ndarray) -> None:
        super().__init__("liar", DType.F32, (2, 3))
        self._values = values

    def _rows(self, start: int, stop: int) -> np.ndarray:
        return self._values


@pytest.mark.parametrize("values", [np.zeros((2, 4), np.float32), np.zeros((1, 3), np.float32), np.zeros((2, 3))])
def test_a_view_that_breaks_its_declaration_is_refused(values: np.ndarray) -> None:
    with refused("tensor 'liar' yielded", f"{values.dtype} {values.shape}", "declared float32 (2, 3)"):
        Liar(values).rows(0, 2)


def test_a_reshape_keeps_the_last_axis() -> None:
    for shape in ((4, 15), (15, 5), (14, 4)):
        with pytest.raises(ValueError, match="cannot be seen as"):
            ReshapedTensor(array(BASE), shape)


def test_declared_tensors_have_sizes_and_no_data() -> None:
    tensor = DeclaredTensor("t", (2, 3, 4))
    assert (tensor.n_rows, tensor.n_cols, tensor.nbytes) == (6, 4, 48)
    with refused("tensor 't' has no data"):
        tensor.rows(0, 1)


def test_a_stack_of_mixed_dtypes_is_float32() -> None:
    parts = [DeclaredTensor("a", (2, 4), DType.BF16), DeclaredTensor("b", (2, 4), DType.F16)]
    assert StackedTensor("t", parts).dtype is DType.F32
    assert StackedTensor("t", parts[:1]).dtype is DType.BF16


@pytest.mark.parametrize(
    ("value", "bits"),
    [
        (1.0, 0x3F80),
        (-0.0, 0x8000),
        (1 + 2**-8, 0x3F80),  # a tie goes to the even neighbour
        (1 + 3 * 2**-8, 0x3F82),
        (1 + 2**-8 + 2**-20, 0x3F81),
        (2.0**-133, 0x0001),
        (3.3895314e38, 0x7F7F),
    ],
)
def test_bfloat16_is_the_nearest(value: float, bits: int) -> None:
    assert to_bfloat16(np.array([value], np.float32)).tolist() == [bits]


class Coded(ArrayTensor):
    """Rows that are stored as their doubles and their first columns, and lie on a grid of the same."""

    stored_as = "doubled"
    grid = Grid(bits=4, group=2, scales=DType.F16, zero=8)

    def stored_rows(self, start: int, stop: int) -> tuple[np.ndarray, ...]:
        return coded(self.rows(start, stop))

    def grid_rows(self, start: int, stop: int) -> GridRows:
        doubled, first = coded(self.rows(start, stop))
        return GridRows(doubled, first, -first)


def coded(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return 2 * rows, rows[:, :1]


OF_ROWS: dict[str, Callable[[], TensorView]] = {
    "stacked": lambda: StackedTensor("t", [Coded("t", part) for part in BASE]),
    "sliced": lambda: SlicedTensor("t", Coded("t", BASE), 1, 3),
    "window": lambda: WindowTensor("t", Coded("t", BASE), 3, (2, 2, 4)),
    "reshaped": lambda: ReshapedTensor(Coded("t", BASE), (15, 4)),
    "interleaved": lambda: Interleaved("t", Coded("t", BASE), Coded("t", -BASE)),
    "every-other": lambda: EveryOther(Interleaved("t", Coded("t", BASE), Coded("t", -BASE)), second=True),
}


@pytest.mark.parametrize("name", OF_ROWS)
def test_views_of_rows_give_parts_and_grids_of_the_same_rows(name: str) -> None:
    view = OF_ROWS[name]()
    assert (view.stored_as, view.grid) == ("doubled", Coded.grid)
    for start in range(view.n_rows):
        for stop in range(start, view.n_rows + 1):
            wanted = coded(view.rows(start, stop))
            for found in (view.stored_rows(start, stop), view.grid_rows(start, stop)[:2]):
                assert all(np.array_equal(each, want) for each, want in zip(found, wanted, strict=True))


def test_rows_that_are_stored_in_different_ways_have_no_parts() -> None:
    view = StackedTensor("t", [Coded("t", BASE[0]), ArrayTensor("t", BASE[1])])
    assert (view.stored_as, view.grid) == (None, None)
    with pytest.raises(ValueError, match="no grid"):
        ScaledTensor(Coded("t", BASE), 2.0).grid_rows(0, 1)
