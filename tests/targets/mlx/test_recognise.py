"""Folders of mlx_lm.convert without a manifest: what they are called, and that every weight is read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx_lm
import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.targets.mlx.recognise import recognise
from lfm_convert.targets.target import NotJudged, get_target
from support.refusals import refused

MODES: dict[str, tuple[dict[str, Any], str]] = {
    "8bit": ({"quantize": True, "q_bits": 8}, "q8"),
    "4bit": ({"quantize": True}, "q4"),
    "3bit-g32": ({"quantize": True, "q_bits": 3, "q_group_size": 32}, "q3"),
    "mxfp4": ({"quantize": True, "q_mode": "mxfp4"}, "q4"),
    "nvfp4": ({"quantize": True, "q_mode": "nvfp4"}, "q4"),
    "mxfp8": ({"quantize": True, "q_mode": "mxfp8"}, "q5"),
    "mixed_3_6": ({"quantize": True, "quant_predicate": "mixed_3_6"}, "q3"),
    "bf16": ({"dtype": "bfloat16"}, "f16"),
    "f16": ({"dtype": "float16"}, "f16"),
}
MIXTURE = {name for name in MODES if name.startswith("mixed")}  # mlx-lm's recipes demand names that only it has


@pytest.mark.peers
@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize("name", MODES)
def test_every_mode_is_read(name: str, model: str, bundled_dense: Path, tmp_path: Path) -> None:
    if model == "dense" and name in MIXTURE:
        return
    settings, class_name = MODES[name]
    source = bundled_dense if model == "dense" else bundled.path("moe")
    mlx_lm.convert(str(source), str(tmp_path / "out"), **settings)
    (found,) = recognise(tmp_path / "out")
    assert (found.quant, found.class_name, found.label) == (name, class_name, "out")
    weights = get_target("mlx").read(found)
    for weight in open_graph(source).weights():
        values, stored = weight.view.read(), weights[weight.address].read()
        error = np.linalg.norm(stored.reshape(values.shape) - values) / np.linalg.norm(values)
        assert error < {"q8": 0.01, "q5": 0.05, "q4": 0.15, "q3": 0.25}.get(class_name, 1e-3), weight.address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    mlx_lm.convert(str(bundled.path("moe")), str(tmp_path / "out"), quantize=True, q_bits=4)
    return tmp_path / "out"


def test_every_name_of_it_will_do(folder: Path) -> None:
    """The folder, its config, its weights, and the folder above; what is beside them is another thing."""
    for path in (folder, folder / "config.json", folder / "model.safetensors", folder.parent):
        (found,) = recognise(path)
        assert found.path == folder / "config.json"
    assert recognise(folder / "tokenizer.json") == ()
    assert recognise(bundled.path("moe")) == ()  # a checkpoint of transformers


def test_values_of_others_in_the_same_format(folder: Path) -> None:
    """As DWQ leaves them: codes of mlx_lm.convert, scales of somebody else."""
    arrays = mx.load(str(folder / "model.safetensors"))
    for name in [name for name in arrays if name.endswith(".scales")]:
        arrays[name] = arrays[name] * 1.01
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (found,) = recognise(folder)
    mine = get_target("mlx").read(found)[Role.EMBED, None].read()
    module = "model.embed_tokens"
    codes, *floats = (arrays[f"{module}.{part}"] for part in ("weight", "scales", "biases"))
    theirs = mx.dequantize(codes, *(each.astype(mx.float32) for each in floats), group_size=64, bits=4)
    np.testing.assert_array_equal(mine, np.array(theirs))


def test_a_global_scale_is_not_judged(folder: Path) -> None:
    arrays = mx.load(str(folder / "model.safetensors"))
    arrays["model.layers.2.feed_forward.switch_mlp.up_proj.global_scale"] = mx.ones(8)
    mx.save_safetensors(str(folder / "model.safetensors"), arrays)
    (found,) = recognise(folder)
    with pytest.raises(NotJudged, match="1 arrays have a global scale") as caught:
        get_target("mlx").read(found)
    assert (Role.EXPERT_UP, 2) not in caught.value.decoded and (Role.EXPERT_UP, 3) in caught.value.decoded


def test_half_of_it_and_other_models_are_refused(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] = {
        name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(index["weight_map"])
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with refused("missing model-00002-of-00002.safetensors"):
        recognise(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "gpt2"}))
    with refused("unknown architecture: model_type is 'gpt2'"):
        recognise(folder)
    shutil.rmtree(folder)
