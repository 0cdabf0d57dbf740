"""What errors cost: the formula written out, slices and importance, and what storing a weight really does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import MATRICES, Address, Role
from lfm_convert.graph.tensor import ArrayTensor, TensorView
from lfm_convert.quantize.allotment import costs
from lfm_convert.quantize.allotment.costs import Asked, losses
from lfm_convert.quantize.allotment.kept import read_costs
from lfm_convert.quantize.encoding import Encoding, get_encoding
from lfm_convert.quantize.statistics.statistics import open_statistics
from lfm_convert.validate.metrics import position_kld
from support.drawn_statistics import DrawnStatistics

WHERE: Address = (Role.FFN_GATE, 0)
NAMES = ("Q4_0", "Q8_0", "IQ4_NL", "affine3_g64_bf16", "int4_block32_f32", "F16")


def _drawn(shape: tuple[int, ...], seed: int = 0) -> tuple[np.ndarray, DrawnStatistics]:
    rng = np.random.default_rng(seed)
    n = shape[0] if len(shape) == 3 else 1
    statistics = DrawnStatistics(Path("nowhere"), n_tokens=77)
    statistics.known_columns[WHERE] = rng.gamma(1.0, 1.0, (n, shape[-1])).astype(np.float32)
    statistics.known_gradients[WHERE] = rng.gamma(1.0, 1.0, (n, shape[-2])).astype(np.float32)
    return rng.normal(size=shape).astype(np.float32), statistics


def _written_out(values: np.ndarray, encoding: Encoding, statistics: DrawnStatistics, weighed: bool) -> float:
    stacked, cost = values.reshape(-1, *values.shape[-2:]), 0.0
    for e, matrix in enumerate(stacked):
        columns, rows = statistics.known_columns[WHERE][e], statistics.known_gradients[WHERE][e]
        importance = columns if weighed and encoding.weighs_columns else None
        errors = encoding.decode(*encoding.encode(matrix, importance)).astype(np.float64) - matrix
        cost += float(np.einsum("r,rc,c", rows.astype(np.float64), errors**2, columns.astype(np.float64)))
    return cost / 2 / statistics.n_tokens


@pytest.mark.parametrize("weighed", [False, True])
@pytest.mark.parametrize("shape", [(300, 256), (3, 40, 64)])
def test_losses_are_the_formula(shape: tuple[int, ...], weighed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "_RANGE_BYTES", 1)  # so that there are several ranges
    values, statistics = _drawn(shape)
    encodings = tuple(map(get_encoding, NAMES))
    importance = statistics.known_columns[WHERE] if weighed else None
    asked = Asked(address=WHERE, view=ArrayTensor("w", values), encodings=encodings, importance=importance)
    done: list[int] = []
    (found,) = losses([asked], statistics, advance=done.append)
    expected = [_written_out(values, encoding, statistics, weighed) for encoding in encodings]
    assert found == pytest.approx(expected, rel=1e-5)
    assert sum(done) == values.nbytes


def test_the_same_to_the_last_digit_for_any_number_of_workers() -> None:
    values, statistics = _drawn((2000, 256))
    asked = Asked(address=WHERE, view=ArrayTensor("w", values), encodings=tuple(map(get_encoding, NAMES)))
    one, three = (losses([asked, asked], statistics, jobs=jobs) for jobs in (1, 3))
    assert one == three


def test_an_encoding_that_cannot_hold_a_value_costs_without_end() -> None:
    values, statistics = _drawn((8, 64))
    values[3, 5] = 1e6
    encodings = get_encoding("F16"), get_encoding("F32")
    (found,) = losses([Asked(address=WHERE, view=ArrayTensor("w", values), encodings=encodings)], statistics)
    assert found == (np.inf, 0.0)


class _Stored(ArrayTensor):
    stored_as = "Q4_0"  # type: ignore[assignment]


def test_codes_that_go_on_unchanged_cost_nothing() -> None:
    values, statistics = _drawn((8, 64))
    encodings = get_encoding("Q4_0"), get_encoding("Q8_0")
    (found,) = losses([Asked(address=WHERE, view=_Stored("w", values), encodings=encodings)], statistics)
    assert found[0] == 0.0 < found[1]


def test_a_table_that_is_only_looked_up_has_no_input() -> None:
    values, statistics = _drawn((8, 64))
    encodings = (get_encoding("Q4_0"),)
    asked = Asked(address=WHERE, view=ArrayTensor("w", values), encodings=encodings)
    del statistics.known_columns[WHERE]
    (alone,) = losses([asked], statistics)
    statistics.known_columns[WHERE] = np.ones((1, 64), np.float32)
    assert losses([asked], statistics) == [alone]


def test_costs_are_kept_until_statistics_or_encoders_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = read_costs(tmp_path, "1" * 64, "gguf")
    kept.add(WHERE, {"Q4_0": 0.25, "F16": np.inf})
    kept.save()
    found = read_costs(tmp_path, "1" * 64, "gguf")
    assert (found.get(WHERE, "Q4_0"), found.get(WHERE, "F16"), found.get(WHERE, "Q8_0")) == (0.25, np.inf, None)
    assert read_costs(tmp_path, "2" * 64, "gguf").get(WHERE, "Q4_0") is None
    assert read_costs(tmp_path, "1" * 64, "mlx").get(WHERE, "Q4_0") is None
    monkeypatch.setattr("lfm_convert.quantize.allotment.kept.encoders_sha256", lambda: "other")
    assert read_costs(tmp_path, "1" * 64, "gguf").get(WHERE, "Q4_0") is None


def test_costs_of_statistics_that_nobody_may_write_to_go_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only disk answers so even to the superuser."""
    kept = read_costs(tmp_path, "1" * 64, "gguf")
    kept.add(WHERE, {"Q4_0": 0.25})
    kept.save()
    before = sorted(path for path in tmp_path.rglob("*"))
    monkeypatch.setenv("LFM_CONVERT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("os.access", lambda path, mode: False)
    kept = read_costs(tmp_path, "1" * 64, "gguf")
    assert kept.get(WHERE, "Q4_0") == 0.25
    kept.add(WHERE, {"Q8_0": 0.5})
    kept.save()
    found = read_costs(tmp_path, "1" * 64, "gguf")
    assert (found.get(WHERE, "Q4_0"), found.get(WHERE, "Q8_0")) == (0.25, 0.5)
    assert read_costs(tmp_path, "2" * 64, "gguf").get(WHERE, "Q8_0") is None
    assert sorted(path for path in tmp_path.rglob("*") if "cache" not in path.parts) == before


def _swapped(graph: WeightGraph, address: Address, view: TensorView, encoding: Encoding) -> WeightGraph:
    rows = view.rows(0, view.n_rows)
    stored = encoding.decode(*encoding.encode(rows)).reshape(view.shape)
    return graph.with_weights({address: ArrayTensor(view.name, stored)})


@pytest.mark.slow
def test_losses_rank_what_each_weight_does_when_it_alone_is_stored(tmp_path: Path) -> None:
    graph = open_graph(bundled.path("dense"))
    assert graph.tokenizer is not None
    write_statistics(graph, [], tmp_path / "statistics", chunk_size=128, max_chunks=12)
    statistics, encoding = open_statistics(tmp_path / "statistics", graph), get_encoding("Q4_0")
    weights = {w.address: w.view for w in graph.weights() if w.layer is not None and w.role in MATRICES}
    asked = [Asked(address=where, view=view, encodings=(encoding,)) for where, view in weights.items()]
    predicted = [loss for (loss,) in losses(asked, statistics)]
    text = (Path(bundled.__file__).parent / "dense" / "README.md").read_text()
    prompt = [1, *graph.tokenizer.encode(text, special=False)[:300]]
    own = Forward(graph).prefill([prompt])[0][0]
    measured = [
        position_kld(own, Forward(_swapped(graph, where, view, encoding)).prefill([prompt])[0][0]).mean()
        for where, view in weights.items()
    ]
    ranks = [np.argsort(np.argsort(each)) for each in (predicted, measured)]
    assert np.corrcoef(*ranks)[0, 1] > 0.9
    assert 0.4 < np.median(np.array(measured) / predicted) < 2.5
