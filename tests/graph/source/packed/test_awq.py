"""AWQ: packed here by its definition, decoded by the converter of compressed-tensors, which reads such checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.entrypoints.convert.converters.autoawq import AutoAWQConverter
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.opening import open_graph
from support.packed_checkpoints import Packed, check, pack_checkpoint, stored
from support.packers import awq_words
from support.refusals import refused
from support.safetensors_files import edit_tensors

GATE = "model.layers.0.feed_forward.w1"


def settings(group: int = 32, **more: Any) -> dict[str, Any]:
    return {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm", **more}


def by_hand(group: int, scales: torch.dtype = torch.float16) -> Any:
    generator = torch.Generator().manual_seed(group + 2)

    def pack(module: str, weight: torch.Tensor) -> Packed:
        n, k = weight.shape
        columns = k if group < 0 else group
        codes = torch.randint(0, 16, (k, n), generator=generator)
        zeros = torch.randint(0, 16, (k // columns, n), generator=generator)
        scale = torch.rand(k // columns, n, generator=generator).mul(0.02).add(0.001).to(scales)
        parts = {".qweight": awq_words(codes), ".qzeros": awq_words(zeros), ".scales": scale}
        theirs, wide, zero = AutoAWQConverter(group_size=columns)._convert_gemm_module(
            parts[".qweight"], scale.float(), parts[".qzeros"]
        )
        values = (theirs - zero.repeat_interleave(columns, 1)) * wide.repeat_interleave(columns, 1)
        wanted = (codes - zeros.repeat_interleave(columns, 0)) * scale.float().repeat_interleave(columns, 0)
        assert torch.equal(values, wanted.T)
        return parts, values

    return pack


@pytest.mark.parametrize(("group", "scales"), [(32, torch.float16), (64, torch.bfloat16), (-1, torch.float16)], ids=str)
def test_groups_and_scales(dense: Path, group: int, scales: torch.dtype) -> None:
    expected = pack_checkpoint(dense, by_hand(group, scales), settings(group))
    graph = check(dense, expected, dtype=DType.F16 if scales is torch.float16 else DType.BF16)
    assert graph.quantised_as == ("AWQ int4 g" + str(group) if group > 0 else "AWQ int4 a scale a row")


def test_a_word_by_hand(dense: Path) -> None:
    """0x75316420 holds the channels 0 to 7 with the codes 0 to 7."""

    def pack(module: str, weight: torch.Tensor) -> Packed:
        n, k = weight.shape
        parts = {
            ".qweight": torch.full((k, n // 8), 0x75316420, dtype=torch.int32),
            ".qzeros": torch.full((k // 32, n // 8), 0x11111111, dtype=torch.int32),
            ".scales": torch.full((k // 32, n), 0.5, dtype=torch.float16),
        }
        return parts, torch.arange(8).sub(1).mul(0.5).repeat(n // 8)[:, None].repeat(1, k)

    check(dense, pack_checkpoint(dense, pack, settings()), dtype=DType.F16)


def test_a_grid_is_offered(dense: Path) -> None:
    expected = pack_checkpoint(dense, by_hand(32), settings())
    for weight in open_graph(dense).weights():
        if (view := weight.view).name in expected:
            codes, scales, zeros = view.grid_rows(5, 40)
            spread = [np.repeat(part, view.grid.group, axis=1) for part in (scales, zeros)]
            np.testing.assert_array_equal((codes - spread[1]) * spread[0], view.rows(5, 40))


def test_faults_are_told_together(dense: Path) -> None:
    pack_checkpoint(dense, by_hand(32), settings())
    start = "model.layers.1.self_attn."

    def damage(tensors: Any) -> None:
        del tensors[f"{GATE}.qzeros"]
        tensors[start + "q_proj.scales"] = stored(torch.ones(2, 128))
        tensors[start + "k_proj.qweight"] = stored(torch.zeros(128, 8, dtype=torch.uint8))

    edit_tensors(dense / "model.safetensors", damage)
    with refused(
        f"tensor '{GATE}.qzeros' is missing (expected shape [4, 32])",
        f"tensor '{start}q_proj.scales' has the wrong shape: expected [4, 128], found [2, 128]",
        f"tensor '{start}k_proj.qweight' is U8: expected I32",
    ):
        open_graph(dense)


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"version": "gemv"}, "the quantization_config has the version 'gemv': expected gemm"),
        ({"bits": 8}, "the quantization_config has 8 bits: expected 4"),
    ],
)
def test_other_layouts_are_refused(dense: Path, said: dict[str, Any], sentence: str) -> None:
    pack_checkpoint(dense, by_hand(32), settings(**said))
    with refused(sentence):
        open_graph(dense)
