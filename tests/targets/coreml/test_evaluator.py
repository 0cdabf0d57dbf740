"""Packages that coremltools makes, executed as they were saved, and compared with torch and numpy."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.optimize import coreml as compression
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.targets.coreml.evaluator.machine import Evaluator, halved
from lfm_convert.targets.coreml.evaluator.weights import Weight
from lfm_convert.targets.coreml.structure import stale_reads
from support.coreml_packages import (
    HALF,
    INT,
    SINGLE,
    convert,
    ct,
    decoded,
    mb,
    program,
    quiet,
    save,
    state,
    tensor,
    types,
)

_RANDOM = np.random.default_rng(3)


def normal(*shape: int, dtype: Any = np.float32) -> np.ndarray:
    return _RANDOM.standard_normal(shape).astype(dtype)


def constants(evaluator: Evaluator, function: str = "main") -> dict[str, np.ndarray]:
    """The weights that the operations of a function take, by operation and operand."""
    return {
        f"{step.name}.{key}": operand.whole()
        for step in evaluator.functions[function].steps
        for key, operand in step.operands.items()
        if isinstance(operand, Weight) and operand.shape
    }


# --- states ---


def counter(x: Any, kept: Any) -> Any:
    """Adds x to what is kept, and gives the sum's double."""
    total = mb.coreml_update_state(state=kept, value=mb.add(x=mb.read_state(input=kept), y=x))
    return mb.add(x=total, y=total, name="double")


def test_states_go_on_from_call_to_call_and_are_apart(tmp_path: Path) -> None:
    evaluator = Evaluator(save(program(counter, tensor(1, 32), state(1, 32)), tmp_path))
    ours, others = evaluator.new_states(), evaluator.new_states()
    x = {"x": np.full((1, 32), 1.5, np.float16)}
    for n in range(1, 4):
        assert evaluator.run("main", x, ours)["double"][0, 0] == 3 * n
    assert evaluator.run("main", x, others)["double"][0, 0] == 3
    assert ours["kept"][0, 0] == 4.5


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_states_hold_16_bits_in_either_precision(tmp_path: Path, precision: str) -> None:
    evaluator = Evaluator(save(program(counter, tensor(1, 32), state(1, 32)), tmp_path), precision=precision)
    states = evaluator.new_states()
    states["kept"][:] = 2048
    found = evaluator.run("main", {"x": np.ones((1, 32), np.float16)}, states)
    assert states["kept"][0, 0] == 2048 and found["double"][0, 0] == 4096


def test_a_state_rounds_what_is_new_in_it(tmp_path: Path) -> None:
    evaluator = Evaluator(save(program(counter, tensor(1, 32), state(1, 32)), tmp_path))
    states = evaluator.new_states()
    for _ in range(3):  # 2049 is no number of 16 bits: it stays at the even neighbour
        states["kept"] = np.where(np.arange(32) < 16, np.float32(2048), states["kept"])
        evaluator.run("main", {"x": (np.arange(32) < 16).astype(np.float16)[None]}, states)
    assert states["kept"].tolist() == [[2048.0] * 16 + [0.0] * 16]


def rereads(x: Any, kept: Any) -> Any:
    """Writes, then reads anew: the passes of coremltools merge both reads, and the old content is used."""
    old = mb.read_state(input=kept)
    mb.coreml_update_state(state=kept, value=mb.add(x=old, y=x))
    return mb.mul(x=mb.read_state(input=kept), y=np.float16(2), name="double")


def test_the_miscompiled_second_read_gives_the_old_content_and_is_named(tmp_path: Path) -> None:
    package = save(program(rereads, tensor(1, 32), state(1, 32)), tmp_path)
    evaluator, x = Evaluator(package), {"x": np.ones((1, 32), np.float16)}
    states = evaluator.new_states()
    assert [evaluator.run("main", x, states)["double"][0, 0] for _ in range(3)] == [0, 2, 4]
    (fault,) = stale_reads(evaluator.functions["main"])
    assert "kept" in fault and "never read" in fault
    sound = Evaluator(save(program(counter, tensor(1, 32), state(1, 32)), tmp_path, "sound"))
    assert stale_reads(sound.functions["main"]) == []


# --- precisions ---


def test_float16_rounds_each_result_that_is_declared_so(tmp_path: Path) -> None:
    weight = normal(8, 32, dtype=np.float16)

    def body(x: Any) -> Any:
        squares = mb.mul(x=x, y=x)
        wide = mb.reduce_mean(x=mb.cast(x=squares, dtype="fp32"), axes=[-1], keep_dims=True)
        return mb.linear(x=mb.mul(x=squares, y=mb.cast(x=wide, dtype="fp16")), weight=weight, name="y")

    package = save(program(body, tensor(1, 32)), tmp_path)
    x = normal(1, 32, dtype=np.float16)
    wide = x.astype(np.float32)
    exact = (wide**2 * (wide**2).mean(-1, keepdims=True)) @ weight.astype(np.float32).T
    squares = halved(wide**2)
    rounded = halved(halved(squares * halved(squares.mean(-1, keepdims=True))) @ weight.astype(np.float32).T)
    single = Evaluator(package).run("main", {"x": x})["y"]
    half = Evaluator(package, precision="float16").run("main", {"x": x})["y"]
    np.testing.assert_allclose(single, exact.astype(np.float16), 1e-3)
    np.testing.assert_array_equal(half, rounded.astype(np.float16))
    assert (single != half).any()


def test_what_is_too_large_for_16_bits_is_infinite_in_float16_only(tmp_path: Path) -> None:
    def body(x: Any) -> Any:
        return mb.mul(x=mb.mul(x=x, y=x), y=np.float16(1e-4), name="y")

    package = save(program(body, tensor(1, 32)), tmp_path)
    x = {"x": np.full((1, 32), 1000, np.float16)}
    assert Evaluator(package).run("main", x)["y"][0, 0] == pytest.approx(100, rel=1e-3)
    assert np.isinf(Evaluator(package, precision="float16").run("main", x)["y"]).all()


# --- compressed weights ---


def two_layers(dtype: type, n: int = 64) -> Callable[[Any], Any]:
    first, second = normal(2 * n, n, dtype=dtype), normal(n, 2 * n, dtype=dtype)

    def body(x: Any) -> Any:
        return mb.linear(x=mb.relu(x=mb.linear(x=x, weight=first)), weight=second, name="y")

    return body


def _linear(dtype: str, granularity: str, mode: str, block: int = 32) -> Any:
    sizes = {"block_size": block} if granularity == "per_block" else {}
    made = compression.OpLinearQuantizerConfig(
        mode=mode, dtype=dtype, granularity=granularity, weight_threshold=0, **sizes
    )
    return compression.linear_quantize_weights, made


def _palettes(**how: Any) -> Any:
    made = compression.OpPalettizerConfig(mode="kmeans", weight_threshold=0, num_kmeans_workers=1, **how)
    return compression.palettize_weights, made


_WAYS = {
    "int8 per channel": _linear("int8", "per_channel", "linear_symmetric"),
    "uint8 per tensor": _linear("uint8", "per_tensor", "linear"),
    "int8 blocks": _linear("int8", "per_block", "linear", 16),
    "int4 blocks": _linear("int4", "per_block", "linear_symmetric"),
    "uint4 blocks": _linear("uint4", "per_block", "linear"),
    "int4 asymmetric": _linear("int4", "per_block", "linear"),
    "4 bit palette": _palettes(nbits=4),
    "2 bit palettes of rows": _palettes(nbits=2, granularity="per_grouped_channel", group_size=32),
    "6 bit palette": _palettes(nbits=6),
    "3 bit palette": _palettes(nbits=3),
    "1 bit palette": _palettes(nbits=1),
    "4 bit palette of scaled rows": _palettes(nbits=4, enable_per_channel_scale=True),
    "8 bit palette": _palettes(nbits=8),
    "palette of vectors": _palettes(nbits=4, cluster_dim=2, granularity="per_grouped_channel", group_size=32),
    "sparse": (compression.prune_weights, compression.OpMagnitudePrunerConfig(0.6, weight_threshold=0)),
}


@pytest.mark.parametrize(
    ("way", "dtype"),
    [*((way, np.float16) for way in _WAYS), ("uint4 blocks", np.float32), ("4 bit palette", np.float32)],
)
def test_compressed_weights_are_decoded_as_coremltools_does(tmp_path: Path, way: str, dtype: type) -> None:
    is_half = dtype is np.float16
    model = program(two_layers(dtype), tensor(3, 64, dtype=HALF if is_half else SINGLE))
    compress, how = _WAYS[way]
    with quiet():
        model = compress(model, compression.OptimizationConfig(global_config=how))
    package = save(model, tmp_path)
    theirs = decoded(package)
    evaluator = Evaluator(package)
    ours = [value for value in constants(evaluator).values() if value.ndim == 2]
    last = [theirs[name] for name in theirs if theirs[name].ndim == 2 and theirs[name].shape in ((128, 64), (64, 128))]
    assert len(ours) == 2 and len(last) >= 2
    for mine in ours:  # of scaled palettes there are two constants, one made of the other
        tolerance = 1e-3 if is_half else 1e-6
        assert any(
            mine.shape == each.shape and np.allclose(mine, each.astype(np.float32), tolerance, tolerance)
            for each in last
        )
    x = normal(3, 64, dtype=dtype)
    expected = np.maximum(x.astype(np.float32) @ ours[0].T, 0) @ ours[1].T
    tolerance = 2e-3 if is_half else 1e-5
    np.testing.assert_allclose(evaluator.run("main", {"x": x})["y"], expected, tolerance, tolerance * 20)


@pytest.mark.parametrize("kind", ["affine", "palette", "sparse"])
def test_compressed_weights_as_before_ios_18(tmp_path: Path, kind: str) -> None:
    ways = {
        "affine": _linear("uint8", "per_channel", "linear"),
        "palette": _palettes(nbits=4),
        "sparse": _WAYS["sparse"],
    }
    model = program(two_layers(np.float32), tensor(3, 64, dtype=SINGLE), ios=16)
    compress, how = ways[kind]
    with quiet():
        model = compress(model, compression.OptimizationConfig(global_config=how))
    package = save(model, tmp_path)
    theirs, evaluator = decoded(package), Evaluator(package)
    ours = [value for value in constants(evaluator).values() if value.ndim == 2]
    for mine, other in zip(ours, theirs.values(), strict=True):
        np.testing.assert_allclose(mine, other, 1e-6, 1e-6)


def test_rows_and_experts_are_gathered_from_compressed_constants(tmp_path: Path) -> None:
    codes = _RANDOM.integers(-8, 8, (6, 8, 64)).astype(np.int8)
    scale = np.abs(normal(6, 8, 2, dtype=np.float16))

    def body(x: Any, chosen: Any) -> Any:
        packed = codes.astype(types.type_mapping.np_int4_dtype)
        experts = mb.constexpr_blockwise_shift_scale(data=packed, scale=scale)
        some = mb.gather(x=experts, indices=chosen, axis=0, name="some")
        return mb.matmul(x=x, y=some, transpose_y=True, name="y"), mb.matmul(
            x=x, y=experts, transpose_y=True, name="all"
        )

    package = save(program(body, tensor(1, 2, 64), tensor(3, dtype=INT)), tmp_path)
    dense = codes * np.repeat(scale.astype(np.float32), 32, axis=-1)
    x = normal(1, 2, 64, dtype=np.float16)
    inputs = {"x": x, "chosen": np.array([5, 0, 5], np.int32)}
    for kept in (0, 1 << 20):
        evaluator = Evaluator(package, kept_bytes=kept)
        found = evaluator.run("main", inputs, watch=["some"])
        np.testing.assert_array_equal(found["some"], dense[[5, 0, 5]])
        every = x.astype(np.float32) @ np.swapaxes(dense, 1, 2)
        np.testing.assert_allclose(found["all"], every, 2e-3, 2e-2)
        np.testing.assert_allclose(found["y"], every[[5, 0, 5]], 2e-3, 2e-2)


@pytest.mark.parametrize("threads", [1, 2])
def test_large_matrices_are_used_in_blocks_of_rows(tmp_path: Path, threads: int, monkeypatch: Any) -> None:
    monkeypatch.setattr("lfm_convert.targets.coreml.evaluator.weights.BLOCK_NUMBERS", 1000)
    weight, other = normal(130, 64, dtype=np.float16), normal(64, 48, dtype=np.float16)

    def body(x: Any) -> Any:
        return (
            mb.linear(x=x, weight=weight, name="y"),
            mb.matmul(x=x, y=other, name="z"),
            mb.matmul(x=x, y=weight, transpose_y=True, name="w"),
        )

    package = save(program(body, tensor(2, 3, 64)), tmp_path)
    x = {"x": normal(2, 3, 64, dtype=np.float16)}
    whole = Evaluator(package).run("main", x)
    parts = Evaluator(package, kept_bytes=0, threads=threads).run("main", x)
    for name in ("y", "z", "w"):
        np.testing.assert_allclose(parts[name], whole[name], 1e-3, 1e-2)


def test_a_matrix_never_lies_in_memory_as_a_whole(tmp_path: Path) -> None:
    n = 2048
    codes = _RANDOM.integers(-8, 8, (n, n)).astype(types.type_mapping.np_int4_dtype)
    scale = np.abs(normal(n, n // 32, dtype=np.float16))

    def body(x: Any) -> Any:
        weight = mb.constexpr_blockwise_shift_scale(data=codes, scale=scale)
        return mb.linear(x=x, weight=weight, name="y")

    package, x = save(program(body, tensor(1, n)), tmp_path), {"x": np.ones((1, n), np.float16)}
    evaluator = Evaluator(package, kept_bytes=0)
    tracemalloc.start()
    found = evaluator.run("main", x)["y"]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    dense = codes.astype(np.float32) * np.repeat(scale.astype(np.float32), 32, axis=-1)
    np.testing.assert_allclose(found[0], dense.sum(axis=-1), 2e-3, 0.1)
    assert peak < dense.nbytes / 2


# --- what torch makes ---


class Small(torch.nn.Module):
    """Two layers of attention with keys and values in states, as torch users write them."""

    def __init__(self, n: int = 32, context: int = 12) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(50, n)
        self.layers = torch.nn.ModuleList(
            torch.nn.ModuleDict(
                {
                    "norm": torch.nn.LayerNorm(n),
                    "qkv": torch.nn.Linear(n, 3 * n),
                    "out": torch.nn.Linear(n, n),
                    "up": torch.nn.Linear(n, 2 * n),
                    "down": torch.nn.Linear(2 * n, n),
                }
            )
            for _ in range(2)
        )
        self.register_buffer("keys", torch.zeros(2, context, n, dtype=torch.float16))
        self.register_buffer("values", torch.zeros(2, context, n, dtype=torch.float16))
        self.context = context

    def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        end = mask.shape[-1]
        start = end - ids.shape[-1]
        angle = torch.arange(start, end, dtype=torch.float32)[:, None] * 0.1
        x = x * torch.cos(angle) + torch.sin(angle)
        for i, layer in enumerate(self.layers):
            q, k, v = layer["qkv"](layer["norm"](x)).chunk(3, dim=-1)
            self.keys[i : i + 1, start:end, :] = k.half()
            self.values[i : i + 1, start:end, :] = v.half()
            keys, values = self.keys[i : i + 1, :end].float(), self.values[i : i + 1, :end].float()
            heads = [t.reshape(1, -1, 4, 8).transpose(1, 2) for t in (q, keys, values)]
            seen = torch.nn.functional.scaled_dot_product_attention(*heads, attn_mask=mask)
            x = x + layer["out"](seen.transpose(1, 2).reshape(1, -1, 32))
            x = x + layer["down"](torch.nn.functional.gelu(layer["up"](x)))
        return torch.tanh(x).pow(2).mean(-1, keepdim=True) + x


def test_a_traced_transformer_with_states_and_flexible_shapes(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Small().eval()
    example = torch.zeros(1, 2, dtype=torch.int32), torch.zeros(1, 1, 2, 3)
    with quiet(), torch.no_grad():
        traced = torch.jit.trace(model, example)
    n, end = ct.RangeDim(1, 12, default=2), ct.RangeDim(1, 12, default=3)
    made = convert(
        traced,
        inputs=[
            ct.TensorType(shape=(1, n), dtype=np.int32, name="ids"),
            ct.TensorType(shape=(1, 1, n, end), dtype=np.float32, name="mask"),
        ],
        outputs=[ct.TensorType(name="y", dtype=np.float32)],
        states=[
            ct.StateType(ct.TensorType(shape=(2, 12, 32), dtype=np.float16), name="keys"),
            ct.StateType(ct.TensorType(shape=(2, 12, 32), dtype=np.float16), name="values"),
        ],
    )
    evaluator = Evaluator(save(made, tmp_path))
    states = evaluator.new_states()
    reference = Small().eval()
    reference.load_state_dict(model.state_dict())
    reference.keys.zero_()
    reference.values.zero_()
    position = 0
    for count in (3, 1, 1, 4):
        ids = _RANDOM.integers(0, 50, (1, count)).astype(np.int32)
        position += count
        seen = np.arange(position)[None] <= np.arange(position - count, position)[:, None]
        mask = np.where(seen, 0, -1e4).astype(np.float32)[None, None]
        with torch.no_grad():
            expected = reference(torch.tensor(ids), torch.tensor(mask)).numpy()
        found = evaluator.run("main", {"ids": ids, "mask": mask}, states)["y"]
        np.testing.assert_allclose(found, expected, 1e-3, 2e-4)  # a key may round to its other neighbour


# --- calls ---


def test_calls_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    evaluator = Evaluator(save(program(counter, tensor(1, 32), state(1, 32)), tmp_path))
    for inputs in ({}, {"x": np.zeros((1, 31), np.float16)}, {"x": np.zeros((1, 32), np.int32)}, {"z": np.zeros(1)}):
        with pytest.raises(UsageError):
            evaluator.run("main", inputs)
    with pytest.raises(UsageError, match="no function 'other'"):
        evaluator.run("other", {})
    with pytest.raises(UsageError, match="unknown precision"):
        Evaluator(evaluator.package, precision="int8")


def test_an_operation_that_fails_is_named(tmp_path: Path) -> None:
    def body(x: Any, i: Any) -> Any:
        return mb.gather(x=x, indices=i, axis=0, name="taken")

    evaluator = Evaluator(save(program(body, tensor(4, 8), tensor(1, dtype=INT)), tmp_path))
    with pytest.raises(
        InputError, match=r"function 'main': operation '.*' \(gather\) fails: indices 4 … 4 of an axis of 4"
    ):
        evaluator.run("main", {"x": np.zeros((4, 8), np.float16), "i": np.array([4], np.int32)})
