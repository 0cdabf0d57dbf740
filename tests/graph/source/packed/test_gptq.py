"""GPTQ by its definition: packed here in plain loops of integers, decoded from the values that were packed.

GPTQModel cannot be installed beside the pinned torch; docs/sources-safetensors.md says how its own functions were run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.opening import open_graph
from support.packed_checkpoints import Packed, check, configure, pack_checkpoint, stored
from support.packers import dense_words
from support.refusals import refused
from support.safetensors_files import edit_tensors

GATE = "model.layers.0.feed_forward.w1"


def settings(bits: int, group: int, **more: Any) -> dict[str, Any]:
    return {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False, **more}


def by_hand(bits: int, group: int, *, format_: str = "gptq", order: str = "", scales: Any = torch.float16) -> Any:
    """Random codes, zero points and scales in the place of a weight."""
    generator = np.random.default_rng(bits)

    def pack(module: str, weight: torch.Tensor) -> Packed:
        n, k = weight.shape
        columns = k if group < 0 else group
        groups = k // columns
        codes = generator.integers(0, 2**bits, (k, n))
        zeros = generator.integers(0, 2**bits, (groups, n))
        scale = torch.rand(groups, n).mul(0.02).add(0.001).to(scales)
        index = np.arange(k) // columns
        if order == "act":
            index = generator.permutation(index)
        held = (zeros - 1) % 2**bits if format_ == "gptq" else zeros
        parts = {
            ".qweight": torch.from_numpy(dense_words(codes.T, bits).T.copy()),
            ".qzeros": torch.from_numpy(dense_words(held, bits)),
            ".scales": scale,
        }
        if order != "none":
            parts[".g_idx"] = torch.from_numpy(index.astype(np.int32))
        values = (torch.from_numpy(codes - zeros[index]) * scale.float()[index]).T
        return parts, values

    return pack


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("format_", ["gptq", "gptq_v2"])
def test_every_number_of_bits(dense: Path, bits: int, format_: str) -> None:
    pack = by_hand(bits, 32, format_=format_)
    graph = check(dense, pack_checkpoint(dense, pack, settings(bits, 32, checkpoint_format=format_)), dtype=DType.F16)
    assert graph.quantised_as == f"GPTQ int{bits} g32"


@pytest.mark.parametrize("group", [64, -1])
@pytest.mark.parametrize("order", ["act", "none", ""])
def test_groups_and_orders(dense: Path, group: int, order: str) -> None:
    graph = check(
        dense,
        pack_checkpoint(dense, by_hand(4, group, order=order), settings(4, group, desc_act=True)),
        dtype=DType.F16,
    )
    assert graph.quantised_as == ("GPTQ int4 g64" if group > 0 else "GPTQ int4 a scale a row")


def test_modules_with_settings_of_their_own(dense: Path) -> None:
    """`dynamic`: a pattern gives other bits, and one of those left as they were fits none that is packed."""
    said = settings(4, 32, dynamic={"-:.*w2": {}, r".*\.self_attn\..*": {"bits": 8, "group_size": 64}})

    def pack(module: str, weight: torch.Tensor) -> Packed:
        return (by_hand(8, 64) if "self_attn" in module else by_hand(4, 32))(module, weight)

    graph = check(dense, pack_checkpoint(dense, pack, said, only=("w1", "w3", "conv", "self_attn")), dtype=DType.F16)
    assert graph.quantised_as == "GPTQ int4 g32 and int8 g64"


def test_a_word_by_hand(dense: Path) -> None:
    """Eight codes 0 to 7 in one word, zero point 8 stored as 7, a scale of a half: -4, -3.5, … -0.5."""

    def pack(module: str, weight: torch.Tensor) -> Packed:
        n, k = weight.shape
        parts = {
            ".qweight": torch.full((k // 8, n), 0x76543210, dtype=torch.int32),
            ".qzeros": torch.full((k // 32, n // 8), 0x77777777, dtype=torch.int32),
            ".scales": torch.full((k // 32, n), 0.5, dtype=torch.float16),
        }
        return parts, torch.arange(8).sub(8).mul(0.5).repeat(n, k // 8)

    check(dense, pack_checkpoint(dense, pack, settings(4, 32)), dtype=DType.F16)


@pytest.mark.parametrize("order", ["", "act"])
def test_a_grid_is_offered_where_groups_lie_side_by_side(dense: Path, order: str) -> None:
    expected = pack_checkpoint(dense, by_hand(4, 32, order=order), settings(4, 32))
    for weight in open_graph(dense).weights():
        if (view := weight.view).name not in expected:
            continue
        if order:
            assert view.grid is None
            continue
        codes, scales, zeros = view.grid_rows(5, 40)
        spread = [np.repeat(part, view.grid.group, axis=1) for part in (scales, zeros)]
        np.testing.assert_array_equal((codes - spread[1]) * spread[0], view.rows(5, 40))


def test_faults_are_told_together(dense: Path) -> None:
    said = settings(4, 32, dynamic={".*w3": {"bits": 1}, ".*w2": {"group_size": "all"}})
    pack_checkpoint(dense, by_hand(4, 32), said)
    start = "model.layers.1.self_attn."

    def damage(tensors: Any) -> None:
        del tensors[f"{GATE}.scales"]
        tensors[start + "q_proj.qzeros"] = stored(torch.zeros(4, 8, dtype=torch.int32))
        tensors[start + "k_proj.g_idx"] = stored(torch.full((128,), 4, dtype=torch.int32))
        del tensors[start + "v_proj.qweight"]

    edit_tensors(dense / "model.safetensors", damage)
    with refused(
        "the quantization_config has 1 bits: expected 2 to 8",
        "the quantization_config has the group_size 'all': expected a number of columns, or -1",
        f"tensor '{start}k_proj.g_idx' gives column 0 the group 4: expected 0 to 3",
        f"tensor '{GATE}.scales' is missing (expected shape [4, 256])",
        f"tensor '{start}q_proj.qzeros' has the wrong shape: expected [4, 16], found [4, 8]",
        f"tensor '{start}v_proj.qweight' is missing",
    ):
        open_graph(dense)


def test_other_layouts_are_refused(dense: Path) -> None:
    pack_checkpoint(dense, by_hand(4, 32), settings(4, 32, checkpoint_format="marlin"))
    with refused("the quantization_config has the format 'marlin': expected gptq or gptq_v2"):
        open_graph(dense)


def test_a_config_of_another_method_is_refused(dense: Path) -> None:
    pack_checkpoint(dense, by_hand(4, 32), settings(4, 32))
    configure(dense, quantization_config={"quant_method": "bitsandbytes", "load_in_4bit": True})
    with refused("config.json says bitsandbytes (4 bit), the tensors say GPTQ (tensor '"):
        open_graph(dense)
