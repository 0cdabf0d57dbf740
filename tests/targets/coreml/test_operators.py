"""Each operation of the evaluator against what coremltools itself infers of constants, or torch where it infers nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from coremltools.converters.mil.mil import Function
from coremltools.converters.mil.mil.ops.registry import SSAOpRegistry
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_convert.targets.coreml.evaluator.operators.table import operators
from support.coreml_packages import ct, mb

OPSET = "CoreML8"
_RANDOM = np.random.default_rng(7)
F = _RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
G = _RANDOM.standard_normal((2, 3, 4)).astype(np.float32)
ROW = _RANDOM.standard_normal((1, 1, 4)).astype(np.float32)
POSITIVE = np.abs(F) + np.float32(0.1)
UNIT = np.tanh(F)
INTS = _RANDOM.integers(-9, 9, (2, 3, 4)).astype(np.int32)
MORE = _RANDOM.integers(1, 5, (2, 3, 4)).astype(np.int32)
TRUTH, OTHER = F > 0, G > 0
TIES = np.array([[1, 3, 3, 2, 3], [0, 0, 0, 0, 0]], np.float32)


def i32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


# What coremltools infers by itself: the operation, and its operands.
INFERRED: list[tuple[str, dict[str, Any]]] = [
    *((kind, {"x": F}) for kind in (
        ["abs", "atan", "ceil", "cos", "cosh", "erf", "exp", "floor", "relu", "relu6", "round", "sigmoid", "sign", "sin", "sinh", "softplus", "softsign", "square", "tan", "tanh", "identity", "softmax", "gelu", "exp2", "shape"])),
    *((kind, {"x": POSITIVE}) for kind in ("sqrt", "rsqrt", "log", "inverse")),
    *((kind, {"x": UNIT}) for kind in ("acos", "asin")),
    *((kind, {"x": F, "y": ROW}) for kind in (
        ["add", "sub", "mul", "real_div", "maximum", "minimum", "less", "less_equal", "greater", "greater_equal", "equal", "not_equal", "floor_div", "mod"])),
    *((kind, {"x": INTS, "y": MORE}) for kind in (
        ["add", "sub", "mul", "maximum", "minimum", "less", "greater_equal", "equal", "not_equal", "floor_div", "mod"])),
    ("pow", {"x": POSITIVE, "y": F}),
    ("pow", {"x": INTS, "y": MORE}),
    *((kind, {"x": TRUTH, "y": OTHER}) for kind in ("logical_and", "logical_or", "logical_xor")),
    ("logical_not", {"x": TRUTH}),
    ("log", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("rsqrt", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("inverse", {"x": POSITIVE, "epsilon": np.float32(0.5)}),
    ("softmax", {"x": F, "axis": 1}),
    ("gelu", {"x": F, "mode": "TANH_APPROXIMATION"}),
    ("gelu", {"x": F, "mode": "SIGMOID_APPROXIMATION"}),
    ("clip", {"x": F, "alpha": np.float32(-0.5), "beta": np.float32(0.5)}),
    ("threshold", {"x": F, "alpha": np.float32(0.2)}),
    ("leaky_relu", {"x": F, "alpha": np.float32(0.2)}),
    ("linear_activation", {"x": F, "alpha": np.float32(0.2), "beta": np.float32(1.5)}),
    ("select", {"cond": TRUTH, "a": F, "b": G}),
    *(("cast", {"x": F * 3, "dtype": dtype}) for dtype in ("int32", "fp16", "fp32", "bool")),
    ("cast", {"x": INTS, "dtype": "fp32"}),
    *((f"reduce_{kind}", {"x": F, "axes": i32(0, -1), "keep_dims": keep})
      for kind in ["sum", "mean", "max", "min", "prod", "sum_square", "l1_norm", "l2_norm"] for keep in (True, False)),
    ("reduce_sum", {"x": INTS, "axes": i32(1), "keep_dims": False}),
    ("reduce_log_sum_exp", {"x": F, "axes": i32(1), "keep_dims": True}),
    ("reduce_sum", {"x": F}),
    *((kind, {"x": F, "axis": 1, "keep_dims": keep}) for kind in ("reduce_argmax", "reduce_argmin") for keep in (True, False)),
    ("topk", {"x": F, "k": 2, "axis": 1}),
    ("topk", {"x": F, "k": 2, "axis": -1, "ascending": True}),
    ("topk", {"x": F, "k": 3, "axis": 0 - 1, "return_indices": False}),
    ("cumsum", {"x": F, "axis": 1}),
    ("cumsum", {"x": F, "axis": 1, "reverse": True}),
    ("layer_norm", {"x": F, "axes": i32(-1)}),
    ("layer_norm", {"x": F, "axes": i32(1, 2), "gamma": F[0], "beta": G[0], "epsilon": np.float32(1e-2)}),
    ("l2_norm", {"x": F, "epsilon": np.float32(1e-3)}),
    ("scaled_dot_product_attention", {"query": F, "key": G, "value": F}),
    ("scaled_dot_product_attention", {"query": F, "key": G, "value": F, "attn_mask": np.tri(3, dtype=bool)}),
    ("scaled_dot_product_attention", {"query": F, "key": G, "value": F, "attn_mask": np.tri(3, dtype=np.float32)}),
    ("matmul", {"x": F, "y": G, "transpose_y": True}),
    ("matmul", {"x": F, "y": G, "transpose_x": True}),
    ("matmul", {"x": F, "y": ROW[0].T}),
    ("linear", {"x": F, "weight": G[0]}),
    ("linear", {"x": F, "weight": G[0], "bias": F[0, :, 0]}),
    ("expand_dims", {"x": F, "axes": i32(0, -1)}),
    ("squeeze", {"x": ROW, "axes": i32(0)}),
    ("squeeze", {"x": ROW}),
    ("reshape", {"x": F, "shape": i32(3, -1)}),
    ("reshape", {"x": F, "shape": i32(0, 2, -1)}),
    ("transpose", {"x": F, "perm": i32(2, 0, -2)}),
    ("reverse", {"x": F, "axes": i32(1)}),
    ("reverse", {"x": F}),
    ("concat", {"values": [F, G], "axis": -1}),
    ("stack", {"values": [F, G], "axis": 1}),
    ("split", {"x": F, "num_splits": 2, "axis": -1}),
    ("split", {"x": F, "split_sizes": i32(1, 2), "axis": 1}),
    ("tile", {"x": F, "reps": i32(1, 2, 3)}),
    ("pad", {"x": F, "pad": i32(1, 0, 0, 2), "mode": "constant", "constant_val": np.float32(3)}),
    ("pad", {"x": F, "pad": i32(1, 2), "mode": "reflect"}),
    ("pad", {"x": F, "pad": i32(1, 2), "mode": "replicate"}),
    ("fill", {"shape": i32(2, 3), "value": np.float32(4)}),
    ("range_1d", {"end": np.int32(11), "start": np.int32(2), "step": np.int32(3)}),
    ("range_1d", {"end": np.float32(2), "start": np.float32(0), "step": np.float32(0.75)}),
    ("band_part", {"x": F, "lower": 1, "upper": 0}),
    ("gather", {"x": F, "indices": i32(2, 0, 2), "axis": 1}),
    ("gather", {"x": F, "indices": np.int32(1), "axis": -1}),
    ("gather", {"x": F, "indices": i32(1, 0, 1, 1).reshape(2, 2), "axis": 0}),
    ("gather", {"x": F, "indices": i32(1, 0, 2, 1).reshape(2, 2), "axis": 1, "batch_dims": 1}),
    ("gather_along_axis", {"x": F, "indices": MORE % 3, "axis": 1}),
    ("scatter_along_axis", {"data": F, "indices": np.argsort(F, 1).astype(np.int32), "updates": G, "axis": 1, "mode": "update"}),
    ("slice_by_size", {"x": F, "begin": i32(0, 1, 2), "size": i32(-1, 2, 1)}),
    ("slice_by_size", {"x": F, "begin": i32(-1, 0, -3), "size": i32(1, 1, 2)}),
    ("slice_update", {"x": F, "update": G[:, 1:, ::2], "begin": i32(0, 1, 0), "end": i32(2, 3, 4), "stride": i32(1, 1, 2)}),
]  # fmt: skip


@contextmanager
def inferring() -> Iterator[None]:
    """Where operations may be built that are in no program."""
    with Function({}, opset_version=ct.target.iOS18):
        yield


def inferred(kind: str, operands: dict[str, Any]) -> list[np.ndarray]:
    with inferring():
        found = getattr(mb, kind)(**operands)
    found = list(found) if isinstance(found, (tuple, list)) else [found]
    assert all(each.val is not None for each in found), f"coremltools does not infer {kind}"
    return [np.asarray(each.val) for each in found]


def evaluated(kind: str, operands: dict[str, Any]) -> list[np.ndarray]:
    given = {
        key: value if isinstance(value, (str, list)) else np.asarray(value, np.int32 if type(value) is int else None)
        for key, value in operands.items()
    }
    with np.errstate(all="ignore"):
        found = operators(OPSET)[kind].function(**given)
    return [np.asarray(each) for each in (found if isinstance(found, tuple) else (found,))]


def assert_same(kind: str, found: list[np.ndarray], expected: list[np.ndarray]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.shape == theirs.shape, kind
        assert ours.dtype.kind == theirs.dtype.kind or {ours.dtype.kind, theirs.dtype.kind} == {"f", "i"}, kind
        tolerance = 2e-3 if theirs.dtype == np.float16 else 2e-6
        np.testing.assert_allclose(ours.astype(np.float64), theirs.astype(np.float64), tolerance, tolerance)


@pytest.mark.parametrize(("kind", "operands"), INFERRED, ids=[f"{kind}-{i}" for i, (kind, _) in enumerate(INFERRED)])
def test_what_coremltools_infers(kind: str, operands: dict[str, Any]) -> None:
    assert_same(kind, evaluated(kind, operands), inferred(kind, operands))


def test_operands_and_what_they_are_without_being_given_are_those_of_coremltools() -> None:
    for kind, operator in operators(OPSET).items():
        versions = SSAOpRegistry.core_ops[kind]
        latest = max((v for v in versions if v is None or v <= ct.target.iOS18), key=lambda v: v.value if v else -1)
        types = versions[latest].input_spec.input_types
        assert operator.operands == set(types), kind
        assert operator.required == {name for name, each in types.items() if not each.optional}, kind
        assert set(operator.stored) | set(operator.alike) <= operator.operands, kind


def test_of_equal_numbers_the_first_comes_first() -> None:
    values, places = evaluated("topk", {"x": TIES, "k": 4})
    assert places.tolist() == [[1, 2, 4, 3], [0, 1, 2, 3]]
    assert values.tolist() == [[3, 3, 3, 2], [0, 0, 0, 0]]
    assert evaluated("argsort", {"x": TIES})[0].tolist() == [[1, 2, 4, 3, 0], [0, 1, 2, 3, 4]]
    assert evaluated("argsort", {"x": TIES, "ascending": True})[0].tolist() == [[0, 3, 1, 2, 4], [0, 1, 2, 3, 4]]
    assert evaluated("reduce_argmax", {"x": TIES})[0].tolist() == [1, 0]


def test_an_exclusive_sum_begins_with_zero() -> None:
    assert evaluated("cumsum", {"x": i32(1, 2, 3), "exclusive": True})[0].tolist() == [0, 1, 3]
    assert evaluated("cumsum", {"x": i32(1, 2, 3), "exclusive": True, "reverse": True})[0].tolist() == [5, 3, 0]


def test_values_are_interleaved() -> None:
    found = evaluated("concat", {"values": [i32(1, 2), i32(3, 4)], "axis": 0, "interleave": True})
    assert found[0].tolist() == [1, 3, 2, 4]


def test_one_hot() -> None:
    found = evaluated("one_hot", {"indices": i32(1, 0), "one_hot_vector_size": 3, "on_value": np.float32(5)})
    assert found[0].tolist() == [[0, 5, 0], [5, 0, 0]]
    assert evaluated("one_hot", {"indices": i32(1, 0), "one_hot_vector_size": 3, "axis": 0})[0].shape == (3, 2)


def test_silu() -> None:
    assert_same("silu", evaluated("silu", {"x": F * 60}), [torch.nn.functional.silu(torch.tensor(F * 60)).numpy()])


def test_windows_slide() -> None:
    found = evaluated("sliding_windows", {"x": np.arange(12).reshape(2, 6), "axis": -1, "size": 3, "stride": 2})
    assert found[0].tolist() == [[[0, 1, 2], [2, 3, 4]], [[6, 7, 8], [8, 9, 10]]]


_MODES = {"add": np.add, "sub": np.subtract, "mul": np.multiply, "div": np.divide, "max": np.maximum, "min": np.minimum}


@pytest.mark.parametrize("mode", ["update", *_MODES])
def test_scatters(mode: str) -> None:
    apply = _MODES.get(mode, lambda old, new: new)
    updates = G[:, :2] + 2
    expected = F.copy()
    for at, place in enumerate((2, 0)):
        expected[:, place] = apply(expected[:, place], updates[:, at])
    (found,) = evaluated("scatter", {"data": F, "indices": i32(2, 0), "updates": updates, "axis": 1, "mode": mode})
    np.testing.assert_array_equal(found, expected)
    (found,) = evaluated("scatter_nd", {"data": F, "indices": i32(0, 2, 1, 1).reshape(2, 2), "updates": updates[0], "mode": mode})  # fmt: skip
    expected = F.copy()
    for at, place in enumerate(((0, 2), (1, 1))):
        expected[place] = apply(expected[place], updates[0, at])
    np.testing.assert_array_equal(found, expected)


def test_places_that_are_scattered_to_twice_add_up() -> None:
    found = evaluated("scatter", {"data": i32(0, 0), "indices": i32(1, 1), "updates": i32(3, 4)})
    assert found[0].tolist() == [0, 7]
    found = evaluated("scatter_along_axis", {"data": i32(0, 0), "indices": i32(1, 1), "updates": i32(3, 4)})
    assert found[0].tolist() == [0, 7]


def test_gather_nd() -> None:
    found = evaluated("gather_nd", {"x": F, "indices": i32(1, 2, 0, 0).reshape(2, 2)})
    np.testing.assert_array_equal(found[0], F[[1, 0], [2, 0]])


@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize(("stride", "dilation", "pad"), [(1, 1, 0), (2, 1, 1), (1, 2, 2)])
def test_convolutions_of_one_axis(groups: int, stride: int, dilation: int, pad: int) -> None:
    x = _RANDOM.standard_normal((2, 6, 11)).astype(np.float32)
    weight = _RANDOM.standard_normal((6, 6 // groups, 3)).astype(np.float32)
    bias = _RANDOM.standard_normal(6).astype(np.float32)
    expected = torch.nn.functional.conv1d(
        *map(torch.tensor, (x, weight, bias)), stride=stride, padding=pad, dilation=dilation, groups=groups
    )
    operands = {"x": x, "weight": weight, "bias": bias, "strides": i32(stride), "pad_type": "custom"}
    more = {"pad": i32(pad, pad), "dilations": i32(dilation), "groups": groups}
    assert_same("conv", evaluated("conv", operands | more), [expected.numpy()])


def test_convolutions_of_two_axes_and_paddings_that_keep_the_size() -> None:
    x = _RANDOM.standard_normal((1, 4, 7, 6)).astype(np.float32)
    weight = _RANDOM.standard_normal((8, 2, 3, 2)).astype(np.float32)
    padded = {"same": (0, 1, 1, 1), "same_lower": (1, 0, 1, 1), "valid": (0, 0, 0, 0)}
    for pad_type, widths in padded.items():
        given = torch.nn.functional.pad(torch.tensor(x), widths)
        expected = torch.nn.functional.conv2d(given, torch.tensor(weight), groups=2)
        found = evaluated("conv", {"x": x, "weight": weight, "pad_type": pad_type, "groups": 2})
        assert_same("conv", found, [expected.numpy()])


def test_batch_norm_and_einsum() -> None:
    x = _RANDOM.standard_normal((2, 3, 5)).astype(np.float32)
    mean, variance, gamma, beta = F[0, :, 0], POSITIVE[0, :, 0], G[0, :, 0], G[0, :, 1]
    expected = torch.nn.functional.batch_norm(*map(torch.tensor, (x, mean, variance, gamma, beta)), eps=1e-5)
    operands = {"x": x, "mean": mean, "variance": variance, "gamma": gamma, "beta": beta}
    assert_same("batch_norm", evaluated("batch_norm", operands), [expected.numpy()])
    found = evaluated("einsum", {"values": [F, G], "equation": "bij,bkj->bik"})
    assert_same("einsum", found, [np.einsum("bij,bkj->bik", F, G)])


@pytest.mark.parametrize("opset", ["CoreML5", "CoreML8"])
def test_a_negative_index_counts_from_the_end_only_before_ios_17(opset: str) -> None:
    gather = operators(opset)["gather"].function
    if opset == "CoreML5":
        np.testing.assert_array_equal(gather(F, i32(-1)), F[[-1]])
    else:
        with pytest.raises(ValueError, match="indices -1 … -1 of an axis of 2"):
            gather(F, i32(-1))


@pytest.mark.parametrize(
    ("kind", "operands"),
    [
        ("gather", {"x": F, "indices": i32(2)}),
        ("gather_along_axis", {"x": F, "indices": INTS, "axis": 1}),
        ("slice_update", {"x": F, "update": G[:1], "begin": i32(0, 0, 0), "end": i32(2, 3, 4)}),
        ("slice_update", {"x": F, "update": G, "begin": i32(0, 1, 0), "end": i32(2, 4, 4)}),
        ("slice_by_size", {"x": F, "begin": i32(1, 0, 0), "size": i32(2, 3, 4)}),
        ("fill", {"shape": i32(1 << 20, 1 << 20)}),
        ("tile", {"x": F, "reps": i32(1 << 20, 1 << 20, 1)}),
        ("range_1d", {"end": np.float32(1), "start": np.float32(0), "step": np.float32(1e-12)}),
        ("range_1d", {"end": np.int32(1), "start": np.int32(0), "step": np.int32(0)}),
        ("one_hot", {"indices": i32(0, 1), "one_hot_vector_size": 1 << 30}),
        ("add", {"x": np.zeros((1 << 16, 1), np.int32), "y": np.zeros((1, 1 << 16), np.int32)}),
        ("real_div", {"x": INTS, "y": MORE}),
        ("gelu", {"x": F, "mode": "SOMETHING"}),
        ("topk", {"x": F, "k": 5}),
        ("split", {"x": F, "split_sizes": i32(1, 1), "axis": 1}),
        ("conv", {"x": F, "weight": G, "groups": 2}),
    ],
)
def test_what_cannot_be_is_refused(kind: str, operands: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        evaluated(kind, operands)


_PLACES = st.integers(-5, 5)


@settings(max_examples=150, deadline=None)
@given(
    begin=st.lists(_PLACES, min_size=3, max_size=3),
    end=st.lists(_PLACES, min_size=3, max_size=3),
    stride=st.lists(st.sampled_from([1, 2, -1]), min_size=3, max_size=3),
    masks=st.lists(st.lists(st.booleans(), min_size=3, max_size=3), min_size=2, max_size=2),
    squeezed=st.integers(-1, 2),
)
def test_slices_by_index(
    begin: list[int], end: list[int], stride: list[int], masks: list[list[bool]], squeezed: int
) -> None:
    squeeze = np.arange(3) == squeezed
    if squeezed >= 0:  # a single place, which must lie within
        begin[squeezed], stride[squeezed], masks[0][squeezed] = begin[squeezed] % F.shape[squeezed], 1, False
    operands = {
        "x": F, "begin": i32(*begin), "end": i32(*end), "stride": i32(*stride),
        "begin_mask": np.array(masks[0]), "end_mask": np.array(masks[1]), "squeeze_mask": squeeze,
    }  # fmt: skip
    try:
        expected = inferred("slice_by_index", operands)
    except (ValueError, AssertionError):  # a slice that coremltools does not take, or does not infer
        return
    if expected[0].size:
        assert_same("slice_by_index", evaluated("slice_by_index", operands), expected)
