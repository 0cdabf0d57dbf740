"""The two passes: against passes of all tokens together, the importance of before, and by every number of cores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.progress import Progress
from lfm_convert.graph.reference.backward.run import Backward
from lfm_convert.graph.reference.state import Batch, State
from lfm_convert.graph.roles import Address, Role
from lfm_convert.graph.source.safetensors import SafetensorsFile
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize import together as batches
from lfm_convert.quantize.calibration import calibrate
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.statistics import gather as gathering
from lfm_convert.quantize.statistics.borrowing import Loan
from lfm_convert.quantize.statistics.collector import Collector
from lfm_convert.quantize.statistics.gather import gather
from lfm_convert.quantize.statistics.layout import MOMENTS, measured_weights
from lfm_convert.quantize.statistics.triangle import unpack
from lfm_convert.quantize.statistics.writing import borrowed, importance
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.refusals import refused
from threadpoolctl import threadpool_limits

CHUNKS = [[1, *np.random.default_rng(i).integers(14, 512, n).tolist()] for i, n in enumerate((40, 7, 60, 31, 90))]
N_TOKENS = sum(map(len, CHUNKS))


class Whole(Backward):
    """Sums squared gradients by the outputs of every matrix and expert, in float64."""

    def __init__(self, graph: WeightGraph) -> None:
        super().__init__(graph)
        self.squares: dict[tuple[Address, int], np.ndarray] = {}

    def pull(self, gradient, weight, **rows):  # type: ignore[no-untyped-def]
        key = weight.address, rows.get("expert") or 0
        self.squares[key] = np.square(gradient, dtype=np.float64).sum(axis=0)
        return super().pull(gradient, weight, **rows)


def whole(graph: WeightGraph, seed: int) -> tuple[Whole, np.ndarray, np.ndarray]:
    """All tokens in one batch: its sums, the gradient by embedded rows, and the distributions."""
    run, residuals = Whole(graph), list(Backward(graph).trace(CHUNKS))
    logits = run.head(run.finish(residuals[-1])).astype(np.float64)
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    _, gradient = run.turn_end(residuals[-1], np.random.default_rng(seed).random(N_TOKENS))
    for layer in reversed(graph.layers):
        _, pull = run.turn_layer(layer, residuals[layer.index], Batch(State(len(CHUNKS)), [*map(len, CHUNKS)]))
        gradient = pull(gradient)
    return run, gradient, p


@pytest.fixture(scope="module", params=["dense", "moe", "moe-untied"])
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    configs = {"dense": dense_config(), "moe": moe_config(), "moe-untied": moe_config(tie_embedding=False)}
    return open_graph(make_checkpoint(tmp_path_factory.mktemp(request.param), configs[request.param]))


@pytest.fixture
def small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batches, "BATCH_TOKENS", 64)
    monkeypatch.setattr(gathering, "HEAD_ELEMENTS", 512 * 13)


def same(found: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.linalg.norm(found - expected) <= 1e-5 * np.linalg.norm(expected))


def test_batches_change_nothing(graph: WeightGraph, small_batches: None, tmp_path: Path) -> None:
    run = gather(graph, CHUNKS, seed=4, scratch=tmp_path)
    expected, by_embedded, p = whole(graph, 4)
    assert not list(tmp_path.glob("residual-*")), "what is not needed any more is gone"
    for (address, which), sums in expected.squares.items():
        if address[1] is not None:
            assert same(run.gradients.sums[address][which], sums), address
    head = (p - p * p).sum(axis=0)
    rows = np.zeros((512, graph.config.hidden_size))
    np.add.at(rows, np.concatenate(CHUNKS), np.square(by_embedded, dtype=np.float64))
    columns = run.mean_squares(run.head_weight.address)[0]
    found = run.squared_gradients((Role.EMBED, None))[0]
    if graph.is_tied:
        assert same(found * columns.mean(), head * columns.mean() + rows.mean(axis=1))
    else:
        assert same(run.squared_gradients((Role.LM_HEAD, None))[0], head)
        assert same(found, rows.mean(axis=1))
        weights = run.mean_squares((Role.EMBED, None))[0]
        assert weights.mean() == pytest.approx(1)
        assert same(weights * rows.mean(axis=1).sum(), rows.sum(axis=0))


def test_every_weight_has_statistics(graph: WeightGraph, tmp_path: Path) -> None:
    run = gather(graph, CHUNKS, seed=0, scratch=tmp_path)
    for address, shape in measured_weights(graph).items():
        n = shape[0] if len(shape) == 3 else 1
        assert run.mean_squares(address).shape == (n, shape[-1])
        assert run.squared_gradients(address).shape == (n, shape[-2])
        if address[0] is not Role.EMBED:
            assert (run.squared_gradients(address).sum(axis=1) > 0).all(), address


def test_uses_of_a_tied_table_are_told_apart(graph: WeightGraph, small_batches: None, tmp_path: Path) -> None:
    """Lookups count for rows that the text has alone; what is left is the head's, of every row."""
    run = gather(graph, CHUNKS, seed=3, scratch=tmp_path)
    if not graph.is_tied:
        assert run.lookups is None
        return
    both, used = run.squared_gradients((Role.EMBED, None))[0], np.unique(np.concatenate(CHUNKS))
    assert run.lookups is not None and (run.lookups[used] > 0).all()
    assert not np.delete(run.lookups, used).any()
    assert (both - run.lookups > 0).all()
    _, _, p = whole(graph, 3)
    head = (p - p * p).sum(axis=0) * graph.config.logit_scale**2
    assert same(both - run.lookups, head)


def test_importance_is_that_of_before(graph: WeightGraph, small_batches: None, tmp_path: Path) -> None:
    found, expected = importance(gather(graph, CHUNKS, seed=0, scratch=tmp_path)), calibrate(graph, CHUNKS)
    assert set(found) == {tensor_name(address, graph.config.family) for address in expected}
    for address, use in expected.items():
        own = found[tensor_name(address, graph.config.family)]
        assert np.array_equal(own.counts, use.counts), "true counts, nothing borrowed"
        assert np.allclose(own.sums, use.sums, rtol=1e-5)


def test_what_an_expert_borrows_is_counted_and_mixed(tmp_path: Path) -> None:
    """Three experts that no token chooses, by their bias: measured on what lies next, and reported."""
    graph = open_graph(make_checkpoint(tmp_path / "model", moe_config()))
    bias = np.where(np.arange(8) < 5, np.float32(2), np.float32(0))
    graph = graph.with_weights({(Role.EXPERT_BIAS, i): ArrayTensor("bias", bias) for i in (1, 2, 3)})
    run = gather(graph, CHUNKS, seed=0, scratch=tmp_path, moments=tmp_path)
    told = borrowed(run)
    for layer in ("blk.1", "blk.2", "blk.3"):
        for which in "567":
            assert told[layer][which]["tokens"] == 0 and told[layer][which]["borrowed"] == 128
            assert 0 < told[layer][which]["counted_as"] <= 128
    for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN):
        columns, gradients = run.mean_squares((role, 2)), run.squared_gradients((role, 2))
        assert (columns.mean(axis=1) > 0).all() and (gradients.sum(axis=1) > 0).all()
        # of a mean of about the same size as those of experts with tokens of their own
        assert columns[5:].mean() == pytest.approx(columns[:5].mean(), rel=0.9)
    moments = SafetensorsFile(tmp_path / "moments/blk.2.ffn_gate_exps.safetensors").tensors[MOMENTS]
    for which in (0, 5):
        diagonal = np.diagonal(unpack(moments.rows(which, which + 1)[0], 128))
        assert np.allclose(diagonal, run.mean_squares((Role.EXPERT_GATE, 2))[which], rtol=1e-4)
    use = importance(run)["blk.2.ffn_gate_exps.weight"]
    assert not use.counts[5:].any() and not use.sums[5:].any()


@pytest.mark.parametrize("keep_bytes", [0, 1 << 30])
def test_the_number_of_cores_changes_no_byte(
    keep_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moe_graph: WeightGraph
) -> None:
    found = []
    for n_threads in (1, 2, 3):
        run = Collector(moe_graph, with_moments=False)
        run.is_kept = keep_bytes > 0
        monkeypatch.setattr(gathering, "Collector", lambda graph, with_moments, run=run: run)
        with threadpool_limits(n_threads):
            gather(moe_graph, CHUNKS, seed=0, scratch=tmp_path)
        found.append({a: (run.mean_squares(a), run.squared_gradients(a)) for a in measured_weights(moe_graph)})
    for address, (columns, gradients) in found[0].items():
        for other in found[1:]:
            assert np.array_equal(columns, other[address][0]) and np.array_equal(gradients, other[address][1])


def test_borrowed_tokens_count_by_their_shares_and_move_nothing(moe_graph: WeightGraph) -> None:
    """What an expert gives of them is never added, and its gradient is that of the layer times its weight."""
    layer, rng = moe_graph.layers[2], np.random.default_rng(8)
    x, gradient = rng.standard_normal((2, 30, 128), np.float32)
    tokens, shares = np.array([13, 15, 29]), np.array([1, 0.5, 0.25], np.float32)
    loan = Loan(tokens, shares, np.array([0.3, 0.2, 0.1], np.float32))
    found = []
    for loans in ({}, {3: loan}):
        run = Collector(moe_graph, with_moments=False)
        run.loans = {2: loans}
        run.watch(10)  # the batch is tokens 10 … 39 of the text
        out, pull = run.turn_layer(layer, x, Batch(State(1), [30]))
        found.append((out, pull(gradient), run))
    (out, by_x, alone), (out_too, by_x_too, run) = found
    assert np.array_equal(out, out_too) and np.array_equal(by_x, by_x_too)
    assert np.array_equal(run.inputs.sums[Role.EXPERT_DOWN, 2], alone.inputs.sums[Role.EXPERT_DOWN, 2])
    expected = (shares[:, None] * np.square(loan.weights[:, None] * gradient[tokens - 10])).sum(axis=0)
    borrowed_sums = run.borrowed_gradients.sums[Role.EXPERT_DOWN, 2]
    assert same(borrowed_sums[3], expected) and not np.delete(borrowed_sums, 3, axis=0).any()
    own, mass = run.gradients.sums[Role.EXPERT_DOWN, 2][3], run.gradients.tokens[Role.EXPERT_DOWN, 2][3]
    assert same(run.squared_gradients((Role.EXPERT_DOWN, 2))[3], (own + expected) / (mass + 1.75) * mass)


def ended(after: int) -> Progress:
    """Stops a run where so many token layers are done."""
    left = after

    def advance(n: int) -> None:
        nonlocal left
        left -= n
        if left < 0:
            raise KeyboardInterrupt

    return Progress(advance=advance)


def test_an_interrupted_run_goes_on_to_the_same_sums(graph: WeightGraph, small_batches: None, tmp_path: Path) -> None:
    moments = tmp_path / "moments"
    whole_run = gather(graph, CHUNKS, seed=4, scratch=tmp_path / "whole", moments=tmp_path / "whole-moments")
    n_interrupts = 0
    for after in range(100, 10**6, 333):
        try:
            run = gather(graph, CHUNKS, seed=4, scratch=tmp_path / "scratch", moments=moments, progress=ended(after))
            break
        except KeyboardInterrupt:
            n_interrupts += 1
    assert n_interrupts >= 5
    for kind in ("inputs", "borrowed_inputs", "gradients", "borrowed_gradients"):
        ours, theirs = getattr(run, kind), getattr(whole_run, kind)
        assert ours.sums.keys() == theirs.sums.keys()
        for address, sums in theirs.sums.items():
            np.testing.assert_array_equal(ours.sums[address], sums)
    assert borrowed(run) == borrowed(whole_run)
    files = sorted(path.name for path in (tmp_path / "whole-moments").rglob("*.safetensors"))
    assert files
    for name in files:
        (found,), (expected,) = (list(folder.rglob(name)) for folder in (moments, tmp_path / "whole-moments"))
        assert found.read_bytes() == expected.read_bytes()


def test_a_state_that_cannot_be_read_is_refused(graph: WeightGraph, tmp_path: Path) -> None:
    (tmp_path / "state.npz").write_bytes(b"PK no archive")
    with refused("state.npz", "run without --resume"):
        gather(graph, CHUNKS, seed=4, scratch=tmp_path)
