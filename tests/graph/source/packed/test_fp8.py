"""Floats of eight bits against transformers' own quantizer and dequantizer, and by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfm_convert.graph.codes import float_values
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.opening import open_graph
from support.checkpoints import make_checkpoint, moe_config
from support.packed_checkpoints import Pack, Packed, check, pack_checkpoint, stored
from support.packers import fp8_blocks
from support.refusals import refused
from support.safetensors_files import edit_tensors

BLOCKS = {"quant_method": "fp8", "weight_block_size": [32, 64], "activation_scheme": "dynamic"}
GATE = "model.layers.0.feed_forward.w1.weight"


def by_transformers(scale_fmt: str) -> Pack:
    return fp8_blocks(32, 64, scale_fmt=scale_fmt)[0]


@pytest.mark.parametrize("scale_fmt", ["float", "ue8m0"])
@pytest.mark.parametrize("has_config", [True, False], ids=["config", "tensors"])
def test_blocks_are_transformers(dense: Path, scale_fmt: str, has_config: bool) -> None:
    expected = pack_checkpoint(dense, by_transformers(scale_fmt), BLOCKS if has_config else None)
    graph = check(dense, expected)
    assert graph.quantised_as == "FP8 E4M3 in blocks of 32x64"


def test_blocks_of_stacked_experts(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", moe_config(num_hidden_layers=2), fused_experts=True, tokenizer=False)
    pack_checkpoint(folder, by_transformers("float"), BLOCKS)
    graph = open_graph(folder)
    plain = open_graph(
        make_checkpoint(tmp_path / "plain", moe_config(num_hidden_layers=2), fused_experts=True, tokenizer=False)
    )
    for found, wanted in zip(graph.weights(), plain.weights(), strict=True):
        np.testing.assert_allclose(found.view.read(), wanted.view.read(), atol=0.1 * np.abs(wanted.view.read()).max())


def test_blocks_that_do_not_divide_a_weight(dense: Path) -> None:
    """As DeepSeek stores them: the last block of rows and of columns is smaller."""

    def pack(module: str, weight: torch.Tensor) -> Packed:
        n, k = weight.shape
        scales = torch.rand(-(-n // 48), -(-k // 80)) + 0.5
        codes = weight.to(torch.float8_e4m3fn)
        wide = scales.repeat_interleave(48, 0)[:n].repeat_interleave(80, 1)[:, :k]
        return {".weight": codes, ".weight_scale_inv": scales}, codes.float() * wide

    expected = pack_checkpoint(dense, pack, BLOCKS | {"weight_block_size": [48, 80]})
    assert check(dense, expected).quantised_as == "FP8 E4M3 in blocks of 48x80"


@pytest.mark.parametrize("shape", [(), (1,), (-1, 1), (-1,)], ids=str)
@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
@pytest.mark.parametrize("method", ["fp8", "fbgemm_fp8"])
def test_a_scale_a_tensor_or_a_row(dense: Path, shape: tuple[int, ...], kind: torch.dtype, method: str) -> None:
    def pack(module: str, weight: torch.Tensor) -> Packed:
        sizes = [len(weight) if n < 0 else n for n in shape]
        scales = torch.rand(sizes) * 0.01 + 0.001
        codes = (weight / 0.005).to(kind)
        values = codes.float() * (scales[:, None] if len(shape) == 1 and shape[0] < 0 else scales)
        return {".weight": codes, ".weight_scale": scales, ".input_scale": torch.ones(())}, values

    graph = check(dense, pack_checkpoint(dense, pack, {"quant_method": method, "activation_scheme": "static"}))
    assert graph.quantised_as is not None and graph.quantised_as.endswith("row" if -1 in shape else "tensor")
    assert any("scales activations" in note for note in graph.notes)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2", "e8m0"])
def test_every_code_is_torchs(kind: str) -> None:
    dtype = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2, "e8m0": torch.float8_e8m0fnu}[kind]
    theirs = torch.arange(256, dtype=torch.uint8).view(dtype).float().numpy()
    np.testing.assert_array_equal(float_values(kind), theirs)


def test_small_floats_by_hand() -> None:
    assert float_values("e2m1").tolist() == [0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6]
    assert float_values("e2m3")[[0, 1, 7, 8, 15, 16, 31, 63]].tolist() == [0, 0.125, 0.875, 1, 1.875, 2, 7.5, -7.5]


def test_float16_models_are_declared_as_such(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "model", dtype="float16", tokenizer=False)
    check(folder, pack_checkpoint(folder, by_transformers("float"), BLOCKS), dtype=DType.F16)


def test_faults_are_told_together(dense: Path) -> None:
    pack_checkpoint(dense, by_transformers("float"), BLOCKS)
    start = "model.layers.0."

    def damage(tensors: Any) -> None:
        del tensors[start + "feed_forward.w1.weight_scale_inv"]
        del tensors[start + "feed_forward.w2.weight"]
        del tensors["model.layers.1.operator_norm.weight"]
        tensors[start + "feed_forward.w3.weight_scale_inv"] = stored(torch.ones(3, 3))
        tensors[start + "conv.in_proj.weight_scale_inv"] = stored(torch.ones(12, 2, dtype=torch.int8))

    edit_tensors(dense / "model.safetensors", damage)
    with refused(
        f"tensor '{start}feed_forward.w1.weight_scale_inv' is missing (expected shape [8, 2])",
        f"tensor '{start}feed_forward.w2.weight' is missing",
        "tensor 'model.layers.1.operator_norm.weight' is missing (expected shape [128])",
        f"tensor '{start}feed_forward.w3.weight_scale_inv' has the wrong shape: expected [8, 2], found [3, 3]",
        f"tensor '{start}conv.in_proj.weight_scale_inv' is I8: expected F32, F16, BF16, F8_E8M0 or U8",
    ) as _:
        open_graph(dense)


def test_nan_codes_are_refused_by_their_place(dense: Path) -> None:
    pack_checkpoint(dense, by_transformers("float"), BLOCKS)

    def damage(tensors: Any) -> None:
        data = bytearray(tensors[GATE].data)
        data[5 * 128 + 7] = 0x7F
        tensors[GATE] = tensors[GATE]._replace(data=bytes(data))

    edit_tensors(dense / "model.safetensors", damage)
    view = open_graph(dense).layers[0].weights
    with refused(f"tensor '{GATE}', decoded from '{GATE}', holds nan at [5, 7]: expected finite weights"):
        next(weight.view for weight in view.values() if weight.view.name == GATE).read()
