"""Tuning of codes: never worse than the encoder, the same for any number of workers, and resumed layer by layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import EXPERTS, Address, Role
from lfm_convert.quantize.committed import Tunable
from lfm_convert.quantize.encoding import Encoding, get_encoding
from lfm_convert.quantize.tuning import codes
from lfm_convert.quantize.tuning import store as stores
from lfm_convert.quantize.tuning import tune as tuning
from lfm_convert.quantize.tuning.codes import Tuner
from lfm_convert.quantize.tuning.memory import Room, room_for, tuning_bytes
from lfm_convert.quantize.tuning.moments import Moments, solver
from lfm_convert.quantize.tuning.store import Store
from lfm_convert.quantize.tuning.tune import can_tune, tune
from lfm_convert.quantize.tuning.tuned import tuned_graph
from support.configs import preset

GB = 10**9
N_ROWS, N_COLS, N_TOKENS = 24, 256, 2000
# One of each kind: scales that move and stay, offsets, zero points, tables, tiles, words of several rows, a scale a row.
ENCODINGS = (
    "Q4_0", "Q4_1", "IQ4_NL", "MXFP4", "affine3_g64_bf16", "affine4_g32_f16", "nvfp4_bf16", "int4_block32_f16",
    "ct_int4_g128_f16", "ct_int4_g64_asym_bf16", "ct_mxfp4_bf16", "et_int4_g32", "et_tiles4_g64", "et_int8", "coreml_int4",
)  # fmt: skip


@dataclass(frozen=True)
class Text:
    """Token ids drawn by hand in place of statistics."""

    chunks: tuple[tuple[int, ...], ...]
    sha256: str = "drawn"


def inputs(*, seed: int = 0, n_tokens: int = N_TOKENS) -> tuple[Float32, Float32]:
    """Inputs whose columns go together, a few of them large, and what a quantised prefix makes of them."""
    random = np.random.default_rng(seed)
    mixed, sizes = random.normal(0, 1, (N_COLS // 4, N_COLS)), np.exp(random.normal(0, 1, N_COLS))
    x = random.normal(0, 1, (n_tokens, N_COLS // 4)) @ mixed + random.normal(0, 0.3, (n_tokens, N_COLS))
    x *= sizes
    off = x + random.normal(0, 0.05, x.shape) * np.abs(x).mean(axis=0) - 0.02 * x
    return x.astype(np.float32), off.astype(np.float32)


def moments_of(floats: Float32, quantised: Float32) -> Moments:
    found = Moments(floats.shape[1])
    for start in range(0, len(floats), 700):
        found.add(quantised[start : start + 700], floats[start : start + 700])
    return found


def rows(n: int = N_ROWS) -> Float32:
    return np.random.default_rng(5).normal(0, 0.05, (n, N_COLS)).astype(np.float32)


def tunable(name: str) -> Tunable:
    found = get_encoding(name)
    assert isinstance(found, Tunable)
    return found


@pytest.mark.parametrize("name", ENCODINGS)
def test_what_rows_give_is_nearer_and_never_farther(name: str) -> None:
    encoding, weights, (floats, quantised) = tunable(name), rows(), inputs()
    moments = moments_of(floats, quantised)
    found = Tuner.of(moments.settled()).tune(encoding, weights)
    for part, planned in zip(found.parts, encoding.parts(N_COLS), strict=True):
        assert part.dtype == planned.dtype and part.nbytes == planned.offset(N_ROWS, N_ROWS)
    assert (found.errors <= found.stock).all()
    stock = encoding.decode(*encoding.encode(weights, moments.mean_squares))
    new_floats, new_quantised = inputs(seed=0, n_tokens=4 * N_TOKENS)  # of the same model, mostly tokens not seen
    wanted = new_floats[N_TOKENS:] @ weights.T

    def error(values: Float32) -> float:
        return float(np.square(new_quantised[N_TOKENS:] @ values.T - wanted).sum())

    share = error(encoding.decode(*found.parts)) / error(stock)
    assert share < (0.9 if encoding.class_name != "q8" else 1.001)


@pytest.mark.parametrize("name", ["Q4_0", "et_tiles4_g64"])
def test_no_row_is_so_far_from_its_weights_that_it_could_be_another(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inputs of which few columns count leave the others free to move: three encoders' errors is as far as a row goes."""
    floats, quantised = inputs()
    sizes = np.exp(np.random.default_rng(3).normal(0, 3, N_COLS)).astype(np.float32)
    moments, encoding, weights = moments_of(floats * sizes, quantised * sizes).settled(), tunable(name), rows(32)

    def distance() -> Float32:
        parts = Tuner.of(moments).tune(encoding, weights).parts
        found, usual = (
            np.square(encoding.decode(*each) - weights).sum(axis=1) for each in (parts, encoding.encode(weights))
        )
        ratio: Float32 = np.sqrt(found / usual)
        return ratio

    stock = encoding.decode(*encoding.encode(weights, np.diagonal(moments.squares).copy())) - weights
    weighed = np.sqrt(
        np.square(stock).sum(axis=1) / np.square(encoding.decode(*encoding.encode(weights)) - weights).sum(axis=1)
    )
    assert (distance() <= np.maximum(3.0, weighed) + 1e-5).all()
    monkeypatch.setattr(codes, "_FURTHEST", np.inf)
    assert distance().max() > 3.0


def test_the_codes_of_a_small_matrix_are_the_best_there_are() -> None:
    """Two columns that always go together: the error of the first is what the second can undo."""
    encoding = tunable("Q4_0")
    weights = np.zeros((1, 32), np.float32)
    weights[0, 0], weights[0, 1], weights[0, 2] = -0.8, 0.24, 0.24
    moments = Moments(32)
    x = np.random.default_rng(0).normal(0, 1, (500, 32)).astype(np.float32)
    x[:, 2] = x[:, 1]
    moments.add(x, x)
    values = encoding.decode(*Tuner.of(moments.settled()).tune(encoding, weights).parts)
    assert np.abs(values[0, 1] + values[0, 2] - 0.48) < np.abs(2 * 0.2 - 0.48)  # to the nearest each would give 0.2


def test_feedback_is_that_of_the_inverse() -> None:
    random = np.random.default_rng(2)
    x = random.normal(0, 1, (400, 150)).astype(np.float32)
    squares = x.T @ x / 400
    found = solver(squares)
    ordered = squares[np.ix_(found.order, found.order)]
    assert np.allclose(found.feedback * found.pivots @ found.feedback.T, ordered, atol=1e-4)
    assert (np.diff(np.diagonal(ordered)) <= 0).all()
    some = random.normal(0, 1, (7, 150)).astype(np.float32)
    assert np.allclose(found.divide(some) @ squares, some, atol=1e-2)


def test_the_drift_of_products_is_that_of_inputs() -> None:
    """Summed as what a matrix gives of the streams' difference, it asks for the same rows."""
    (floats, quantised), weights = inputs(), rows(8)
    usual, products = moments_of(floats, quantised).settled(), Moments(N_COLS, n_rows=len(weights))
    for start in range(0, N_TOKENS, 700):
        part = slice(start, start + 700)
        products.add(quantised[part], floats[part], (floats[part] - quantised[part]) @ weights.T)
    found = products.settled()
    assert np.array_equal(found.squares, usual.squares) and found.share == usual.share
    assert found.drift.shape == weights.shape
    wanted = usual.drift_of(weights, 0)
    assert np.allclose(found.drift_of(weights[2:5], 2), wanted[2:5], atol=1e-4 * np.abs(wanted).max())
    encoding = tunable("Q4_0")
    whole, part = Tuner.of(found).tune(encoding, weights), Tuner.of(found).tune(encoding, weights[3:], 3)
    assert np.array_equal(whole.parts[0][3:], part.parts[0])


def test_few_tokens_are_not_believed() -> None:
    floats, quantised = inputs()
    shares = [moments_of(floats[:n], quantised[:n]).settled().share for n in (1, 16, 256, N_TOKENS)]
    assert shares[0] == 1 and shares == sorted(shares, reverse=True) and shares[-1] < 0.1
    one = moments_of(floats[:1], quantised[:1]).settled()
    assert np.count_nonzero(one.squares) == np.count_nonzero(np.diagonal(one.squares)) and not one.drift.any()
    every = moments_of(floats, quantised).settled()
    none = Moments(N_COLS).settled(every)
    assert np.allclose(none.squares, every.squares, rtol=0.02, atol=0.02 * np.diagonal(every.squares).mean())


def test_dead_columns_and_inputs_that_are_all_zero() -> None:
    floats, quantised = inputs()
    floats[:, 3::5] = quantised[:, 3::5] = 0
    for moments in (moments_of(floats, quantised), moments_of(floats * 0, quantised * 0), Moments(N_COLS)):
        for name in ("Q4_0", "affine4_g64_bf16", "coreml_int4"):
            encoding = tunable(name)
            found = Tuner.of(moments.settled()).tune(encoding, rows())
            values = encoding.decode(*found.parts)
            assert np.isfinite(values).all()
            assert np.square(values - rows()).sum() < 0.05 * np.square(rows()).sum()


def chosen(graph: WeightGraph, name: str) -> dict[Address, Encoding]:
    encoding = get_encoding(name)
    return {each.address: encoding for each in graph.weights() if can_tune(graph, each, encoding)}


@pytest.fixture(scope="module")
def graph() -> WeightGraph:
    return open_model("bundled:moe")


@pytest.fixture(scope="module")
def text() -> Text:
    random = np.random.default_rng(7)
    return Text(tuple(tuple(random.integers(3, 60, 150).tolist()) for _ in range(8)))


@pytest.fixture(scope="module")
def done(graph: WeightGraph, text: Text, tmp_path_factory: pytest.TempPathFactory) -> Store:
    return tune(graph, chosen(graph, "Q4_0"), text, tmp_path_factory.mktemp("one"))


def files(store: Store) -> Mapping[str, str]:
    return {each.file: each.sha256 for each in store.weights.values()}


def test_a_mixture_is_nearer_to_its_floats(graph: WeightGraph, text: Text, done: Store) -> None:
    assert {role for role, _ in done.weights} >= {*EXPERTS, Role.CONV_IN, Role.ATTN_OUT, Role.FFN_DOWN}
    assert Role.ROUTER not in {role for role, _ in done.weights}
    assert all(each.tuned_error <= each.stock_error for each in done.weights.values())
    tuned = {address: done.encoded(address, "tuned") for address in done.weights}
    plain = {a: _Stock(graph, a) for a in done.weights}
    wanted, ours, theirs = (
        np.concatenate(Forward(each).prefill(text.chunks)[0])
        for each in (graph, graph.with_weights(tuned), graph.with_weights({a: v.view for a, v in plain.items()}))
    )
    assert np.square(ours - wanted).mean() < 0.8 * np.square(theirs - wanted).mean()


class _Stock:
    """A weight as the encoder leaves it."""

    def __init__(self, graph: WeightGraph, address: Address) -> None:
        from lfm_convert.graph.tensor import ArrayTensor

        view = next(each.view for each in graph.weights() if each.address == address)
        encoding = get_encoding("Q4_0")
        self.view = ArrayTensor(
            view.name, encoding.decode(*encoding.encode(view.rows(0, view.n_rows))).reshape(view.shape)
        )


def test_workers_change_nothing(graph: WeightGraph, text: Text, done: Store, tmp_path: Path) -> None:
    assert files(tune(graph, chosen(graph, "Q4_0"), text, tmp_path, room=Room(3))) == files(done)


def test_goes_on_behind_the_last_finished_layer(
    graph: WeightGraph, text: Text, done: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finish, tuned = Store.finish, []

    def stopped(self: Store, layer: int) -> None:
        finish(self, layer)
        if layer == 1:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Store, "finish", stopped)
        tune(graph, chosen(graph, "Q4_0"), text, tmp_path, room=Room(2))
    assert json.loads((tmp_path / "tuned.json").read_text())["layers"] == [None, 0, 1]
    add = Store.add
    monkeypatch.setattr(
        Store, "add", lambda self, address, *args, **kw: (tuned.append(address), add(self, address, *args, **kw))
    )
    assert files(tune(graph, chosen(graph, "Q4_0"), text, tmp_path, room=Room(2))) == files(done)
    assert {layer for _, layer in tuned} == {2, 3}


def test_another_text_or_encoding_begins_anew(graph: WeightGraph, text: Text, done: Store) -> None:
    assert Store(done.folder, done.key).layers == [None, 0, 1, 2, 3]
    assert Store(done.folder, stores.digest_of("another")).layers == []


def test_experts_without_tokens_are_as_all_experts_have_it(graph: WeightGraph, tmp_path: Path) -> None:
    """Of one token all go to the same experts: the others take what these met."""
    one = Text(((5,) * 600, (5,) * 600))
    some = {a: e for a, e in chosen(graph, "Q4_0").items() if a[0] in EXPERTS}
    found = tune(graph, some, one, tmp_path, room=Room(2))
    for address in found.weights:
        values = found.encoded(address, "tuned").read()
        floats = next(each.view for each in graph.weights() if each.address == address).read()
        assert np.isfinite(values).all()
        assert np.square(values - floats).sum() < 0.05 * np.square(floats).sum()


def test_writers_take_the_codes(graph: WeightGraph, done: Store) -> None:
    ours = tuned_graph(graph, done, {"codes": {}})
    for weight in ours.weights():
        if weight.address in done.weights:
            assert weight.view.stored_as == "Q4_0"
            (stored,) = weight.view.stored_rows(0, 32)
            decoded = done.encoded(weight.address, "tuned").rows(0, 32)
            assert np.array_equal(get_encoding("Q4_0").decode(stored), decoded)
            before = next(each.view for each in graph.weights() if each.address == weight.address)
            assert np.array_equal(weight.view.rows(0, 32), before.rows(0, 32))


def test_bad_input_is_refused_in_a_sentence(
    graph: WeightGraph, text: Text, done: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match="at least 1024 tokens: this one has 9"):
        tune(graph, chosen(graph, "Q4_0"), Text(((1, 2, 3),) * 3), tmp_path / "few")
    assert not (tmp_path / "few").exists()
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match=r"holds other files and no tuned\.json"):
        tune(graph, chosen(graph, "Q4_0"), text, tmp_path / "other")
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in done.folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    first = next(iter(done.weights.values())).file
    data = bytearray((copy / first).read_bytes())
    data[7] ^= 1
    (copy / first).write_bytes(data)
    with pytest.raises(InputError, match=r"has sha256 .*: expected .*; remove the folder"):
        Store(copy, done.key)
    (copy / first).unlink()
    with pytest.raises(InputError, match="is missing; remove the folder"):
        Store(copy, done.key)
    (copy / "tuned.json").write_text("[]")
    with pytest.raises(InputError, match="is not what tuning writes"):
        Store(copy, done.key)
    monkeypatch.setattr(tuning.Moments, "mean_squares", property(lambda self: np.full(self.n_cols, np.nan, np.float32)))
    with pytest.raises(InputError, match="inputs that are no numbers"):
        tune(graph, chosen(graph, "Q4_0"), text, tmp_path / "nan")


def test_what_lies_on_the_disk_changes_nothing(graph: WeightGraph, text: Text, done: Store, tmp_path: Path) -> None:
    tight = Room(1, held_stream_bytes=0, holds_moments=False)
    assert files(tune(graph, chosen(graph, "Q4_0"), text, tmp_path, room=tight)) == files(done)
    assert {path.suffix for path in tmp_path.iterdir()} == {".bin", ".json"}  # and goes when it is not needed any more


def test_a_limit_makes_room_or_is_refused(tmp_path: Path) -> None:
    """A mixture of 8.3 B by 32,768 tokens is tuned within 4 GB; what cannot be is said before any work."""
    (tmp_path / "config.json").write_text(json.dumps(preset("moe-8b")))
    large = open_model(str(tmp_path), weights=False)
    free = room_for(large, 32_768, jobs=8)
    assert free == Room(8)
    limits = (4 * GB, 3 * GB, 5 * GB // 2, 2 * GB)
    rooms = [room_for(large, 32_768, jobs=8, max_memory=limit) for limit in limits]
    assert all(tuning_bytes(large, 32_768, room) <= limit for room, limit in zip(rooms, limits, strict=True))
    assert rooms[0] == free and rooms[1].jobs == 8 and rooms[3].jobs < 8 and not rooms[3].holds_moments
    with pytest.raises(
        UsageError, match=r"--max-memory 500 MB is too little to tune the codes of .*: at least 1\.\d+ GB"
    ):
        room_for(large, 32_768, jobs=8, max_memory=GB // 2)
