"""LFM3's configs and tensors: what may be left out, and what contradicts itself."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.blocks import Attention, Branch, Dense, ShortConv
from lfm_convert.graph.config import ModelConfig
from lfm_convert.graph.opening import declare, open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.source.config_file import parse_config
from lfm_convert.targets.target import target_names
from support.checkpoints import lfm3_config, make_checkpoint
from support.refusals import refused
from support.safetensors_files import Tensor, edit_tensors

FULL, SLIDING = "full_attention", "sliding_attention"
ROPES = {
    FULL: {"partial_rotary_factor": 0.5, "rope_theta": 1e6, "rope_type": "default"},
    SLIDING: {"rope_theta": 10000.0, "rope_type": "default"},
}


def attention(config: ModelConfig, *, sliding: bool) -> Attention:
    return next(block for block in config.of_kind(Attention).values() if (block.window is not None) == sliding)


def test_a_config_may_leave_out_the_classs_defaults() -> None:
    config = parse_config({"model_type": "lfm3", "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0})
    assert (config.n_layers, config.hidden_size, config.vocab_size, config.tied) == (24, 2048, 128_000, True)
    assert list(config.of_kind(ShortConv)) == [0, 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23]
    assert {i: block.window for i, block in config.of_kind(Attention).items() if block.window} == dict.fromkeys(
        (4, 8, 12, 16, 20), 256
    )
    full = attention(config, sliding=False)
    assert (full.n_heads, full.n_kv_heads, full.head_dim, full.is_gated) == (16, 4, 128, True)
    assert full.rope is not None and (full.rope.theta, full.rope.n_turning) == (1e6, 32)
    sliding = attention(config, sliding=True)
    assert sliding.rope is not None and (sliding.rope.theta, sliding.rope.n_turning) == (1e4, 64)
    assert config.shared(Dense) == Dense(size=7680)
    assert config.shared(ShortConv) == ShortConv(width=7)
    assert not config.notes


def test_parameters_of_the_published_shape() -> None:
    """Of the released checkpoint: 286 tensors, and the bytes of its file."""
    config = parse_config({"model_type": "lfm3", "bos_token_id": 1, "eos_token_id": 7, "pad_token_id": 0})
    slots = declare(config)
    assert len(slots) == 286
    assert sum(math.prod(slot.shape) for slot in slots) == 1_728_801_536


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        (
            {"layer_types": ["conv", FULL, "mamba", "conv", "conv", "conv"]},
            ["layer_types holds 'mamba'", "conv or full_attention or sliding_attention", "graph/blocks.py"],
        ),
        (
            {"layer_types": ["gla", FULL, "mamba", SLIDING, "conv"], "sliding_window": 0},
            ["layer_types holds 'gla', 'mamba': ", "has 5 entries but num_hidden_layers is 6", "sliding_window is 0"],
        ),
        ({"layer_types": ["conv", FULL]}, ["layer_types has 2 entries but num_hidden_layers is 6"]),
        (
            {"rope_parameters": {**ROPES, FULL: {"rope_type": "yarn", "rope_theta": 1e6}}},
            ["rope_parameters.full_attention", "'yarn'", "'proportional'", "graph/rotary.py"],
        ),
        # the older spelling of a label, which transformers takes too
        ({"rope_parameters": {**ROPES, FULL: {"type": "yarn", "rope_theta": 1e6}}}, ["'yarn'"]),
        ({"rope_parameters": {**ROPES, FULL: {**ROPES[FULL], "factor": 8.0}}}, ["full_attention has factor: "]),
        ({"rope_parameters": {**ROPES, FULL: {"rope_type": "default"}}}, ["rope_parameters.full_attention is {"]),
        ({"rope_parameters": {**ROPES, FULL: {**ROPES[FULL], "rope_theta": 0}}}, ["full_attention.rope_theta is 0"]),
        (
            {"rope_parameters": {FULL: {**ROPES[SLIDING], "rope_type": "llama3"}, SLIDING: {**ROPES[FULL]}}},
            ["full_attention is of type 'llama3'", "sliding_attention is of type 'default' with partial_rotary_factor"],
        ),
        ({"rope_parameters": {}}, ["full_attention is None", "sliding_attention is None"]),
        ({"rope_parameters": ROPES[SLIDING]}, ["full_attention is None", "sliding_attention is None"]),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, ["rope_scaling is {", "in rope_parameters"]),
        ({"partial_rotary_factor": 0.5}, ["partial_rotary_factor is 0.5", "in rope_parameters"]),
        ({"rope_parameters": {FULL: ROPES[FULL]}}, ["rope_parameters.sliding_attention is None", "rope_theta"]),
        ({"rope_parameters": {**ROPES, SLIDING: [1]}}, ["rope_parameters.sliding_attention is [1]"]),
        (
            {"rope_parameters": {**ROPES, FULL: {**ROPES[FULL], "partial_rotary_factor": 1.5}}},
            ["partial_rotary_factor 1.5"],
        ),
        ({"sliding_window": 0}, ["sliding_window is 0"]),
        ({"sliding_window": "16"}, ["sliding_window is '16'"]),
        ({"use_attention_gate": 1}, ["use_attention_gate is 1"]),
        ({"use_sandwich_norm": "yes"}, ["use_sandwich_norm is 'yes'"]),
        ({"head_dim": 47}, ["head_dim is 47"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads 4 is not a multiple of num_key_value_heads 3"]),
        ({"norm_eps": 1e-5, "rms_norm_eps": 1e-6}, ["norm_eps is 1e-05 but rms_norm_eps is 1e-06"]),
        ({"conv_L_cache": 1, "sliding_window": -1}, ["conv_L_cache is 1", "sliding_window is -1"]),
    ],
)
def test_what_contradicts_itself_is_named(overrides: dict[str, Any], parts: list[str]) -> None:
    with refused("config.json", *parts):
        parse_config(lfm3_config(**overrides))


Change = Callable[[dict[str, Tensor]], object]


def _edited(folder: Path, change: Change) -> Path:
    make_checkpoint(folder, lfm3_config())
    edit_tensors(folder / "model.safetensors", change)
    return folder


def test_tensors_that_the_config_does_not_speak_of_are_named_together(tmp_path: Path) -> None:
    """No gate, one norm too few, and a window where there is a convolution."""

    def change(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if ".gate_proj." in name]:
            del tensors[name]
        del tensors["model.layers.1.post_ffn_norm.weight"]

    with refused(
        "tensor 'model.layers.2.self_attn.gate_proj.weight' is missing (expected shape [4, 128])",
        "tensor 'model.layers.4.self_attn.gate_proj.weight' is missing",
        "tensor 'model.layers.1.post_ffn_norm.weight' is missing",
    ):
        open_graph(_edited(tmp_path, change))


def test_tensors_of_another_kind_of_layer(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, lfm3_config())
    other = lfm3_config(layer_types=["conv", "conv", FULL, "conv", "conv", "conv"])
    (folder / "config.json").write_text(json.dumps(other))
    with refused("model.layers.4.conv.in_proj.weight", "model.layers.4.self_attn.q_proj.weight"):
        open_graph(folder)


@pytest.mark.parametrize("target", target_names())
def test_several_contradictions_of_config_and_tensors_are_told_together(
    target: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The config has no gates, no norms after blocks, a convolution for a window, and more layers, than the tensors."""
    folder = make_checkpoint(tmp_path / "model", lfm3_config(num_hidden_layers=12))
    other = lfm3_config(num_hidden_layers=14, use_attention_gate=False, use_sandwich_norm=False)
    other["layer_types"][4] = "conv"
    (folder / "config.json").write_text(json.dumps(other))
    assert main([str(folder), "-t", target, "--out", str(tmp_path / "out")]) == 5
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and not (tmp_path / "out").exists()
    for part in (
        "the config describes 14 layers, the tensors are of 12",
        "tensor 'model.layers.4.conv.in_proj.weight' is missing",
        "'self_attn.gate_proj.weight' of 5 layers",
        "'post_operator_norm.weight' of 12 layers",
        "'post_ffn_norm.weight' of 12 layers",
        "'self_attn.q_proj.weight' of layer 4",
    ):
        assert part in said, said


def test_every_tensor_has_one_place(tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, lfm3_config()))
    assert graph.checkpoint is not None
    assert sum(w.view.nbytes for w in graph.weights()) == sum(t.nbytes for t in graph.checkpoint.tensors.values())
    branches: list[Branch] = [branch for layer in graph.layers for branch in layer.branches]
    assert all(branch.norm and branch.post_norm for branch in branches)
    assert graph.layers[2].weights[Role.ATTN_GATE].shape == (4, 128)
    assert graph.layers[4].weights[Role.POST_FFN_NORM].shape == (128,)
