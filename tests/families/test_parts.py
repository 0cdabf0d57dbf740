"""Models of several parts: the text model is taken when it is whole, and what was left out is said."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from support.checkpoints import dense_config, make_checkpoint
from support.family_configs import small
from support.family_models import make_model
from support.refusals import refused
from support.safetensors_files import Tensor, edit_tensors

_IMAGE_TOKENS = {"mm_tokens_per_image": 4, "boi_token_index": 620, "eoi_token_index": 621, "image_token_index": 622}
_VISION = {
    "hidden_size": 16, "image_size": 16, "patch_size": 8, "num_attention_heads": 2, "num_hidden_layers": 1,
    "intermediate_size": 16, "vision_use_head": False, "model_type": "siglip_vision_model",
}  # fmt: skip
WEIGHTS = "model.safetensors"
PROMPT = [1, 40, 300, 17, 500, 9]

# How the text model's tensors are called beside a tower: by transformers 5, by 4, and with the head inside.
NAMES: dict[str, Callable[[str], str]] = {
    "5": lambda name: name if name.startswith("lm_head") else name.replace("model.", "model.language_model.", 1),
    "4": lambda name: "language_model." + name,
}


def beside_a_tower(folder: Path, named: Callable[[str], str], **config: Any) -> Path:
    """The checkpoint as the text part of a model that also sees."""

    def add_tower(tensors: dict[str, Tensor]) -> None:
        for name in list(tensors):
            tensors[named(name)] = tensors.pop(name)
        tensors["vision_tower.patch.weight"] = Tensor("F32", (4, 4), bytes(64))

    edit_tensors(folder / WEIGHTS, add_tower)
    path = folder / "config.json"
    whole = {"model_type": "lfm2_vl", "architectures": ["Lfm2VlForConditionalGeneration"], "vision_config": {}}
    path.write_text(json.dumps({**whole, "text_config": json.loads(path.read_text()), **config}))
    return folder


@pytest.mark.parametrize("names", NAMES)
def test_the_text_model_is_taken(names: str, tmp_path: Path) -> None:
    alone = make_checkpoint(tmp_path / "alone", dense_config())
    folder = beside_a_tower(make_checkpoint(tmp_path / "parts", dense_config()), NAMES[names])
    graph = open_graph(folder)
    assert graph.config.layers == open_graph(alone).config.layers
    assert graph.config.raw["architectures"] == ["Lfm2ForCausalLM"]
    found, expected = (Forward(each).prefill([PROMPT])[0][0] for each in (graph, open_graph(alone)))
    np.testing.assert_array_equal(found, expected)
    said = "; ".join(graph.notes)
    assert "its text model is taken, left out: vision_config" in said
    assert "1 tensors of vision_tower are left out" in said


def test_a_text_model_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = beside_a_tower(make_checkpoint(tmp_path, dense_config()), NAMES["5"])
    gone = "model.language_model.layers.0.conv.in_proj.weight"
    edit_tensors(folder / WEIGHTS, lambda tensors: tensors.pop(gone))
    with refused("model.layers.0.conv.in_proj.weight"):
        open_graph(folder)


@pytest.mark.parametrize("model_type", ["gpt2", None])
def test_a_text_part_of_no_known_family_is_refused(model_type: str | None, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, dense_config())
    text = {**json.loads((folder / "config.json").read_text()), "model_type": model_type}
    beside_a_tower(folder, NAMES["5"], text_config=text)
    with refused("is a vision-language model"):
        open_graph(folder)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"architectures": ["Lfm2VlForSequenceClassification"]}, "is a vision-language model"),
        ({"architectures": ["ColGemma3"], "model_type": "gemma3"}, "model_type is 'gemma3'"),
        ({"is_causal": False}, "is a vision-language model"),
    ],
)
def test_a_model_of_parts_that_writes_no_text_is_refused(fields: dict[str, Any], said: str, tmp_path: Path) -> None:
    """Its text part looks like a language model's, and has another head."""
    folder = beside_a_tower(make_checkpoint(tmp_path, dense_config()), NAMES["5"], **fields)
    with refused(said):
        open_graph(folder)


@pytest.mark.peers
def test_gemma_3_as_transformers_saves_it(tmp_path: Path) -> None:
    import torch
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    text = make_model(tmp_path / "text", small("gemma-3-4b", vocab_size=640))
    config = Gemma3Config(
        text_config=json.loads((text / "config.json").read_text()), vision_config=_VISION, **_IMAGE_TOKENS
    )
    torch.manual_seed(0)
    model = Gemma3ForConditionalGeneration(config).eval()
    model.save_pretrained(tmp_path / "whole")
    graph = open_graph(tmp_path / "whole")
    with torch.no_grad():
        expected = model(torch.tensor([PROMPT])).logits[0].numpy()
    assert np.abs(Forward(graph).prefill([PROMPT])[0][0] - expected).max() <= 1e-4
    assert any("vision_tower" in note for note in graph.notes)
