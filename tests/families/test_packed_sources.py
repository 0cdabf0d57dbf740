"""Quantised checkpoints of other families, as their quantizers write them: each weight is what the format's own arithmetic gives."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from support.family_configs import small
from support.family_models import make_model
from support.packed_checkpoints import pack_checkpoint, stored
from support.packers import awq, compressed, fp8_blocks, gptq
from support.safetensors_files import edit_tensors

FORMATS: dict[str, Callable] = {
    "FP8 blocks": lambda: fp8_blocks(32, 32),
    "AWQ": lambda: awq(32),
    "GPTQ": lambda: gptq(4, 32),
    "compressed-tensors": lambda: compressed("pack-quantized", bits=4, group=32),
}
MODELS = ["Qwen3-0.6B", "Llama-3.2-1B", "Granite-4.0-1B", "gemma-3-270m", "Phi-4-mini"]


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_each_weight_is_what_the_format_says(name: str, format_: str, tmp_path: Path) -> None:
    config = small(name, torch_dtype="bfloat16")
    folder = make_model(tmp_path / "packed", config, tokenizer=False)
    shutil.copytree(folder, tmp_path / "plain")
    pack, settings = FORMATS[format_]()
    decoded = pack_checkpoint(folder, pack, settings)
    assert len(decoded) >= 4 * 4
    edit_tensors(
        tmp_path / "plain" / "model.safetensors",
        lambda tensors: tensors.update({name: stored(value.float()) for name, value in decoded.items()}),
    )
    graph = open_graph(folder)
    assert graph.quantised_as
    for found, wanted in zip(graph.weights(), open_graph(tmp_path / "plain").weights(), strict=True):
        assert found.address == wanted.address
        np.testing.assert_array_equal(found.view.read(), wanted.view.read(), err_msg=str(found.address))
