"""bitsandbytes' own quantizers on the CPU, and its own dequantizers of what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import pytest
import torch
from lfm_convert.graph.opening import open_graph
from support.checkpoints import dense_config, make_checkpoint
from support.packed_checkpoints import Pack, Packed, check, pack_checkpoint, stored
from support.packers import nf4
from support.refusals import refused
from support.safetensors_files import edit_tensors

FOUR = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
EIGHT = {"quant_method": "bitsandbytes", "load_in_8bit": True}
GATE = "model.layers.0.feed_forward.w1"
STATE = f"{GATE}.weight.quant_state.bitsandbytes__nf4"


def four_bits(kind: str, **options: Any) -> Pack:
    return nf4(kind, **options)[0]


def eight_bits(module: str, weight: torch.Tensor) -> Packed:
    codes, scales, _ = bnb.int8_vectorwise_quant(weight.to(torch.float16))
    parts = {".weight": codes, ".SCB": scales, ".weight_format": torch.zeros((), dtype=torch.uint8)}
    return parts, bnb.int8_vectorwise_dequant(codes, scales)


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True], ids=["floats", "nested"])
@pytest.mark.parametrize("block", [64, 256])
def test_four_bits_are_its_own(dense: Path, kind: str, nested: bool, block: int) -> None:
    graph = check(dense, pack_checkpoint(dense, four_bits(kind, nested=nested, block=block), FOUR))
    assert graph.quantised_as == f"bitsandbytes {kind} in blocks of {block}" + (", nested" if nested else "")


def test_four_bits_without_a_config_and_in_another_storage(dense: Path) -> None:
    check(dense, pack_checkpoint(dense, four_bits("nf4", nested=True, storage=torch.bfloat16), None))


def test_blocks_go_on_from_row_to_row(tmp_path: Path) -> None:
    """Rows of 72: no block starts where a row does."""
    config = dense_config(
        hidden_size=72, num_attention_heads=2, num_key_value_heads=1, num_hidden_layers=2, attention=(1,)
    )
    folder = make_checkpoint(tmp_path / "model", config, tokenizer=False)
    check(folder, pack_checkpoint(folder, four_bits("nf4", nested=False), FOUR))


@pytest.mark.parametrize("settings", [EIGHT, None], ids=["config", "tensors"])
def test_eight_bits_are_its_own(dense: Path, settings: dict[str, Any] | None) -> None:
    assert check(dense, pack_checkpoint(dense, eight_bits, settings)).quantised_as == "bitsandbytes int8"


def test_faults_of_four_bits_are_told_together(dense: Path) -> None:
    pack_checkpoint(dense, four_bits("nf4", nested=True), FOUR)
    start = "model.layers.1.self_attn."

    def damage(tensors: Any) -> None:
        state = json.loads(tensors[STATE].data) | {"blocksize": -64}
        tensors[STATE] = stored(torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8))
        del tensors[start + "q_proj.weight.absmax"]
        tensors[start + "k_proj.weight.nested_absmax"] = stored(torch.ones(7))
        del tensors[start + "v_proj.weight.quant_state.bitsandbytes__nf4"]
        tensors[start + "out_proj.weight"] = stored(torch.zeros(8, 1, dtype=torch.uint8))

    edit_tensors(dense / "model.safetensors", damage)
    with refused(
        f"tensor '{STATE}' does not hold the shape and the blocks of its weight",
        f"tensor '{start}q_proj.weight.absmax' is missing (expected shape [256])",
        f"tensor '{start}k_proj.weight.nested_absmax' has the wrong shape: expected [1], found [7]",
        f"tensor '{start}v_proj.weight.quant_state.bitsandbytes__nf4' is missing",
        f"tensor '{start}out_proj.weight' has 8 bytes: expected 8192 of 16384 codes",
    ):
        open_graph(dense)


def test_faults_of_eight_bits(dense: Path) -> None:
    pack_checkpoint(dense, eight_bits, EIGHT)

    def damage(tensors: Any) -> None:
        del tensors[f"{GATE}.SCB"]
        tensors["model.layers.0.conv.in_proj.weight_format"] = stored(torch.ones((), dtype=torch.uint8))

    edit_tensors(dense / "model.safetensors", damage)
    with refused(
        f"tensor '{GATE}.SCB' is missing (expected shape [256])",
        "tensor 'model.layers.0.conv.in_proj.weight_format' is 1: expected 0, rows one after the other",
    ):
        open_graph(dense)
