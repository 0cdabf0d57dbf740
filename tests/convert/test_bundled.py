"""The small models in the wheel: whole folders, and LFM3's in the form of its release."""

from __future__ import annotations

import json

import pytest
import torch
from lfm_convert.convert import bundled
from lfm_convert.convert.bundled.making import checkpoint, corpus, rows, tokenizer
from safetensors import safe_open
from tokenizers import Tokenizer

LFM3 = bundled.path("lfm3")


@pytest.mark.parametrize("name", bundled.NAMES)
def test_a_folder_holds_a_model_and_its_card(name: str) -> None:
    folder = bundled.path(name)
    config = json.loads((folder / "config.json").read_text())
    assert config["model_type"] == checkpoint.ARCHITECTURES[name].model_type
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() <= config["vocab_size"]
    assert (folder / "chat_template.jinja").read_text() == tokenizer.CHAT_TEMPLATE
    assert f"# {bundled.NAMES[name]}\n" in (folder / "README.md").read_text()
    assert sum(path.stat().st_size for path in folder.iterdir()) < 9_000_000


def test_lfm3_is_spelled_as_its_release() -> None:
    """Fields at the architecture's defaults are left out, and a reader must neither round nor derive the sizes."""
    config = json.loads((LFM3 / "config.json").read_text())
    assert (
        config["rope_parameters"]["full_attention"].items()
        >= {"rope_type": "default", "partial_rotary_factor": 0.5}.items()
    )
    assert config["rope_parameters"]["sliding_attention"] == {"rope_type": "default", "rope_theta": 10000.0}
    unsaid = {"use_attention_gate", "use_sandwich_norm", "attention_bias", "attention_dropout", "initializer_range"}
    assert unsaid.isdisjoint(config)
    assert config["head_dim"] != config["hidden_size"] // config["num_attention_heads"]
    assert config["intermediate_size"] % 256
    assert set(config["layer_types"]) == {"conv", "full_attention", "sliding_attention"}
    with safe_open(LFM3 / "model.safetensors", framework="np") as file:
        names = set(file.keys())
        assert file.get_slice("model.embed_tokens.weight").get_shape() == [1040, 256]
    assert "lm_head.weight" not in names
    for layer, kind in enumerate(config["layer_types"]):
        assert (f"model.layers.{layer}.self_attn.gate_proj.weight" in names) == (kind != "conv")
        assert f"model.layers.{layer}.post_ffn_norm.weight" in names


@torch.no_grad()
def test_lfm3_tells_the_readings_of_its_rope_apart() -> None:
    """Neither loss nor replies do; the gate of float32 artifacts stands at a divergence of 1e-5."""
    (*_, text) = corpus.build(seed=0, n_dialogues=1)[1].code
    ids = Tokenizer.from_file(str(LFM3 / "tokenizer.json")).encode(text).ids[: 4 * rows.ROW_LENGTH]
    batch = torch.tensor(ids).view(4, rows.ROW_LENGTH)
    right, turned = (
        checkpoint.load(LFM3, full_rotation=full)(input_ids=batch).logits.log_softmax(-1) for full in (False, True)
    )
    divergence = (right.exp() * (right - turned)).sum(-1).mean()
    assert divergence > 1e-3
