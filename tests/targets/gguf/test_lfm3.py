"""LFM3 as llama.cpp has it since b11938: keys, tensors and types, and what its graph demands.

Keys and names are those that b12211 was seen to read, each taken away in turn (facts/lfm3.md §3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.blocks import Attention
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.rotary import default_rope, frequency_factors, inverse_frequencies
from lfm_convert.quantize.calibration import calibrate
from lfm_convert.quantize.gguf_file.header import ValueType
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.imatrix import importance_bytes
from lfm_convert.targets.gguf.metadata import metadata
from lfm_convert.targets.gguf.stored import stored_tensors
from lfm_convert.targets.gguf.target import TARGET
from support.checkpoints import lfm3_config
from support.graphs import Mixer, half_the_head, with_mixers, with_rope
from support.refusals import refused

# As it is published, but small: conv conv full conv sliding conv full conv, of heads that fill the hidden size.
SMALL = lfm3_config(hidden_size=256, num_hidden_layers=8, head_dim=64, intermediate_size=512)
PROMPT = np.random.default_rng(3).integers(14, 512, 3 * SMALL["sliding_window"]).tolist()


def test_keys_of_the_published_model(published: Callable[[str], WeightGraph]) -> None:
    graph = published("lfm3-1.7b")
    pairs = metadata(graph, stored_tensors(graph), "F16", quantized=False)
    found = {pair.key.removeprefix("lfm3."): pair for pair in pairs if pair.key.startswith("lfm3.")}
    full, sliding = {2, 6, 10, 14, 18, 22}, {4, 8, 12, 16, 20}
    values = {key: pair.value for key, pair in found.items()}
    assert values == {
        "block_count": 24,
        "context_length": 262_144,
        "embedding_length": 2048,
        "feed_forward_length": 7680,
        "attention.head_count": 16,
        "attention.head_count_kv": [4 if i in full | sliding else 0 for i in range(24)],
        "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.key_length": 128,
        "attention.value_length": 128,
        "vocab_size": 128_000,
        "shortconv.l_cache": 7,
        "attention.sliding_window": 256,
        "attention.sliding_window_pattern": [i in sliding for i in range(24)],
        "rope.dimension_count": 128,
    }
    assert found["attention.head_count_kv"].item is ValueType.INT32
    assert found["attention.sliding_window_pattern"].item is ValueType.BOOL
    assert {p.key: p.value for p in pairs}["general.architecture"] == "lfm3"


def test_tensors_of_the_published_model(published: Callable[[str], WeightGraph]) -> None:
    plan = TARGET.plan(published("lfm3-1.7b"), "F16")
    shapes = {tensor.name: tensor.shape for tensor in plan.tensors}
    assert len(shapes) == 286 + 1
    assert shapes["rope_freqs.weight"] == (64,)
    assert {name for name in shapes if not name.startswith("blk.")} == {
        "token_embd.weight", "output_norm.weight", "rope_freqs.weight",
    }  # fmt: skip
    both = {"attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm", "ffn_gate", "ffn_up", "ffn_down"}
    conv = {"shortconv.conv", "shortconv.in_proj", "shortconv.out_proj"}
    attention = {"attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm", "attn_gate"}
    for layer, kind in ((0, conv), (2, attention), (4, attention), (23, conv)):
        prefix = f"blk.{layer}."
        found = {name.removeprefix(prefix) for name in shapes if name.startswith(prefix)}
        assert found == {f"{name}.weight" for name in both | kind}
    assert shapes["blk.0.shortconv.conv.weight"] == (2048, 7)
    assert shapes["blk.2.attn_gate.weight"] == (16, 2048)


# Derived from published parameter counts (facts/lfm3.md §7): of Q4_0 the linear layers, and Q6_K of the embedding.
@pytest.mark.parametrize(
    ("quant", "n_bytes"), [("Q4_0", 1.041e9), ("Q4_K_M", 1.1e9), ("Q8_0", 1.838e9), ("BF16", 3.458e9)]
)
def test_sizes_of_the_published_model(published: Callable[[str], WeightGraph], quant: str, n_bytes: float) -> None:
    assert TARGET.plan(published("lfm3-1.7b"), quant).total_bytes == pytest.approx(n_bytes, rel=0.01)


def test_every_matrix_is_quantised_and_nothing_else(published: Callable[[str], WeightGraph]) -> None:
    """The gate of heads too: a published importance matrix of LFM3-1.7B has 153 entries."""
    chosen = {tensor.name: tensor.encoding.name for tensor in TARGET.plan(published("lfm3-1.7b"), "Q4_0").tensors}
    assert chosen.pop("token_embd.weight") == "Q6_K"
    assert sum(encoding == "Q4_0" for encoding in chosen.values()) == 153
    assert chosen["blk.2.attn_gate.weight"] == "Q4_0"
    kept = {name.rpartition("blk.")[2].partition(".")[2] for name, encoding in chosen.items() if encoding == "F32"}
    assert kept == {
        "weight", "attn_norm.weight", "ffn_norm.weight", "post_attention_norm.weight", "post_ffw_norm.weight",
        "attn_q_norm.weight", "attn_k_norm.weight", "shortconv.conv.weight",
    }  # fmt: skip


def test_float_files_start_with_the_constant(make_graph: Any) -> None:
    names = [tensor.name for tensor in TARGET.plan(make_graph(SMALL), "F16").tensors]
    assert names[:3] == ["rope_freqs.weight", "token_embd.weight", "output_norm.weight"]
    assert names[3] == "blk.0.shortconv.conv.weight"


def test_factors_are_what_the_default_table_is_divided_by(make_graph: Any) -> None:
    graph = make_graph(SMALL)
    (factors,) = (tensor for tensor in stored_tensors(graph) if tensor.role is None)
    assert factors.view.read().tolist() == [1.0] * 16 + [float(np.float32(1e30))] * 16
    stretched = with_rope(graph, half_the_head(64))
    found = next(tensor for tensor in stored_tensors(stretched) if tensor.role is None).view.read()
    own = inverse_frequencies(default_rope(1e6, 64)) / found
    assert np.allclose(own[:16], inverse_frequencies(half_the_head(64))[:16], rtol=1e-6, atol=0)
    assert (frequency_factors(default_rope(1e6, 64)) == 1).all()


def test_all_embedding_rows_have_a_token(make_graph: Any) -> None:
    """llama.cpp loads no file of fewer tokens than rows."""
    graph = make_graph(lfm3_config(vocab_size=640))
    found = {pair.key: pair.value for pair in metadata(graph, stored_tensors(graph), "F16", quantized=False)}
    tokens = found["tokenizer.ggml.tokens"]
    assert len(tokens) == len(found["tokenizer.ggml.token_type"]) == found["lfm3.vocab_size"] == 640
    assert (tokens[-1], found["tokenizer.ggml.token_type"][-1]) == ("[PAD639]", 5)
    assert found["tokenizer.ggml.pre"] == "lfm2"


def test_importance_is_of_every_matrix(make_graph: Any, tmp_path: Path) -> None:
    graph = make_graph(SMALL)
    uses = {tensor_name(address): use for address, use in calibrate(graph, [PROMPT]).items()}
    assert len(uses) == 8 * 3 + 5 * 2 + 3 * 5
    path = tmp_path / "imatrix.gguf"
    path.write_bytes(importance_bytes(uses, datasets=("prompt",), n_chunks=1, chunk_size=len(PROMPT)))
    plan = TARGET.with_options({"imatrix": str(path)}).plan(graph, "Q4_K_M")
    weighed = {tensor.name for tensor in plan.tensors if tensor.importance is not None}
    assert weighed == set(uses) and "blk.4.attn_gate.weight" in weighed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"use_attention_gate": False}, "a block without gated heads, which it demands (layers 2, 4, 6)"),
        ({"attention_bias": True}, "biases of attention (layers 2, 4, 6)"),
        ({"conv_bias": True}, "biases of a short convolution (conv_bias) (layers 0, 1, 3, 5, 7)"),
        (
            {"layer_types": ["conv", "full_attention"] * 4},
            "a model without any sliding-window attention, which it demands",
        ),
        ({"layer_types": ["full_attention", "sliding_attention"] * 4}, "a model without any short convolution"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_its_graph_does_not_have_is_refused(make_graph: Any, changes: dict[str, Any], words: str) -> None:
    graph = make_graph({**SMALL, **changes})
    with refused("llama.cpp has no representation of", words, "'lfm3'", error=UsageError):
        TARGET.plan(graph, "Q4_0")


def test_layers_that_differ_are_refused(make_graph: Any) -> None:
    graph = make_graph(SMALL)
    sizes = iter((8, 16, 24))

    def another_window(mixer: Mixer) -> Mixer:
        return replace(mixer, window=next(sizes)) if isinstance(mixer, Attention) else mixer

    def partial_in_windows(mixer: Mixer) -> Mixer:
        return replace(mixer, rope=half_the_head(64)) if isinstance(mixer, Attention) and mixer.window else mixer

    for change, words in (
        (another_window, "attention with different windows in its layers"),
        (partial_in_windows, "rotary positions of part of a head, or at other than the default frequencies (layer 4)"),
    ):
        with refused(words, error=UsageError):
            TARGET.plan(with_mixers(graph, change), "F16")


def test_one_norm_after_a_block_is_refused_and_none_is_not(make_graph: Any) -> None:
    graph = make_graph({**SMALL, "use_sandwich_norm": False})
    assert not {Role.POST_FFN_NORM, Role.POST_OPERATOR_NORM} & {t.role for t in TARGET.plan(graph, "F16").tensors}
    layers = tuple((branches[0], replace(branches[1], post_norm=branches[1].norm)) for branches in graph.config.layers)
    with refused("demands both or neither (layers 0, 1, 2, 3, 4, 5, 6, 7)", error=UsageError):
        TARGET.plan(replace(graph, config=replace(graph.config, layers=layers)), "F16")


def test_what_is_read_back_is_the_graphs(make_graph: Any, write_quant: Any) -> None:
    graph = make_graph(SMALL)
    found = TARGET.read(write_quant(graph, "F32"))
    assert found.keys() == {weight.address for weight in graph.weights()}
    assert all(np.array_equal(found[weight.address].read(), weight.view.read()) for weight in graph.weights())
