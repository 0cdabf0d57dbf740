"""What is planned: names, order, encodings, metadata, sizes to the byte, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Address, Role
from lfm_convert.quantize.gguf_file.header import ValueType
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.gguf_file.tensor_names import tensor_address, tensor_name
from lfm_convert.targets.gguf.metadata import metadata
from lfm_convert.targets.gguf.stored import Stored, stored_tensors
from lfm_convert.targets.gguf.target import TARGET
from support.artifacts import write_artifact
from support.checkpoints import dense_25_config, dense_config, moe_config
from support.refusals import refused

# Data bytes with padding, from llama-quantize's dry run (facts/gguf.md §7); the rest follows from these.
PUBLISHED_SIZES = {
    "lfm2-350m": {
        "F16": 709_098_496, "BF16": 709_098_496, "Q8_0": 376_830_976, "Q4_0": 216_923_136, "Q4_K_M": 226_925_568,
    },
    "lfm2-1.2b": {
        "F16": 2_340_940_800, "BF16": 2_340_940_800, "Q8_0": 1_243_868_160, "Q4_0": 693_365_760, "Q4_K_M": 728_509_440,
    },
    "lfm2-8b-a1b": {
        "F16": 16_683_169_536, "BF16": 16_683_169_536, "Q8_0": 8_866_035_456, "Q4_0": 4_731_500_288,
        "Q4_K_M": 5_042_386_688, "Q4_K_S": 4_750_374_656, "MXFP4_MOE": 4_748_277_504,
    },
    "lfm2.5-8b-a1b": {
        "F16": 16_939_022_080, "BF16": 16_939_022_080, "Q8_0": 9_001_957_120, "Q4_0": 4_836_439_808,
        "Q4_K_M": 5_147_326_208, "Q4_K_S": 4_855_314_176, "MXFP4_MOE": 4_884_199_168,
    },
}  # fmt: skip
# Bits of a matrix element, of the tied embedding's; bytes of all else.
BITS = {"F32": (32, 32), "Q5_1": (6, 6.5625), "Q5_0": (5.5, 6.5625), "Q4_1": (5, 6.5625)}


@pytest.mark.parametrize(("name", "quant"), [(n, q) for n, sizes in PUBLISHED_SIZES.items() for q in sizes])
def test_sizes_are_llama_quantizes(published: Callable[[str], WeightGraph], name: str, quant: str) -> None:
    plan = TARGET.plan(published(name), quant)
    assert plan.tensor_bytes == PUBLISHED_SIZES[name][quant]
    assert plan.total_bytes == plan.tensor_bytes + sum(map(len, plan.details.values()))


@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-8b-a1b", "lfm2.5-2.6b"])
@pytest.mark.parametrize("quant", BITS)
def test_sizes_follow_from_bits_per_weight(published: Callable[[str], WeightGraph], name: str, quant: str) -> None:
    """All rows of published models are multiples of 256 and all tensors of 32 bytes."""
    graph = published(name)
    matrix, head = BITS[quant]
    kept = {Role.ROUTER, Role.CONV_KERNEL}
    bits = 0.0
    for weight in graph.weights():
        size = weight.view.n_rows * weight.view.n_cols
        narrow = weight.view.n_rows > 1 and weight.role not in kept
        bits += size * ((head if weight.role is Role.EMBED else matrix) if narrow else 32)
    assert TARGET.plan(graph, quant).tensor_bytes == bits / 8


def test_a_plan_from_a_config_says_that_there_is_no_vocabulary(published: Callable[[str], WeightGraph]) -> None:
    plan = TARGET.plan(published("lfm2-350m"), "q4_0")
    assert plan.main_file.endswith("-354M-Q4_0.gguf")  # the folder's name says no size: the weights do
    assert "no tokenizer.json" in plan.notes[0]


def test_every_role_has_a_name() -> None:
    assert len({tensor_name((role, 3)) for role in Role}) == len(Role)


def test_names_are_each_others_inverse(moe_graph: WeightGraph) -> None:
    family = moe_graph.config.family
    for weight in moe_graph.weights():
        assert tensor_address(tensor_name(weight.address, family), family) == weight.address
    for name in (
        "blk.1.nothing.weight", "blk.01.attn_q.weight", "blk.1.output.weight", "attn_q.weight", "output_norm.weight", "",
    ):  # fmt: skip
        assert tensor_address(name, family) is None


def test_float_files_are_in_the_converters_order(make_graph: Any) -> None:
    """By checkpoint name: layer 10 before layer 2, and experts as w1, w2, w3."""
    names = [t.name for t in TARGET.plan(make_graph(moe_config(num_hidden_layers=11)), "BF16").tensors]
    assert names[:3] == ["token_embd.weight", "token_embd_norm.weight", "blk.0.shortconv.conv.weight"]
    layers = list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("blk.")))
    assert layers == ["0", "1", "10", *"23456789"]
    assert [name.removeprefix("blk.1.") for name in names if name.startswith("blk.1.")] == [
        "exp_probs_b.bias", "ffn_gate_exps.weight", "ffn_down_exps.weight", "ffn_up_exps.weight",
        "ffn_gate_inp.weight", "ffn_norm.weight", "attn_norm.weight", "attn_k_norm.weight", "attn_k.weight",
        "attn_output.weight", "attn_q_norm.weight", "attn_q.weight", "attn_v.weight",
    ]  # fmt: skip


def test_quantized_files_are_in_the_quantizers_order(make_graph: Any) -> None:
    names = [t.name for t in TARGET.plan(make_graph(moe_config(num_hidden_layers=11)), "Q4_0").tensors]
    layers = list(dict.fromkeys(name.split(".")[1] for name in names if name.startswith("blk.")))
    assert layers == [str(i) for i in range(11)]
    of_layer = [name for name in names if name.startswith("blk.2.")]
    assert of_layer == sorted(of_layer)


def test_encodings_of_a_tied_model(make_graph: Any) -> None:
    graph = make_graph(moe_config(hidden_size=256, num_experts=12))
    chosen = {t.role: t.encoding.name for t in TARGET.plan(graph, "Q4_0").tensors}
    assert chosen.pop(Role.EMBED) == "Q6_K"
    quantized = {role for role, encoding in chosen.items() if encoding == "Q4_0"}
    assert quantized == {
        Role.CONV_IN, Role.CONV_OUT, Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUT,
        Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN, Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN,
    }  # fmt: skip
    assert {chosen[role] for role in chosen.keys() - quantized} == {"F32"}
    assert {t.encoding.name for t in TARGET.plan(graph, "Q8_0").tensors} == {"Q8_0", "F32"}


def test_encodings_of_an_untied_model(make_graph: Any) -> None:
    graph = make_graph(dense_config(hidden_size=256, tie_embedding=False))
    chosen = {t.role: t.encoding.name for t in TARGET.plan(graph, "Q5_0").tensors}
    assert (chosen[Role.EMBED], chosen[Role.LM_HEAD]) == ("Q5_0", "Q6_K")


def test_rows_that_do_not_fit_fall_back_and_are_named(make_graph: Any) -> None:
    plan = TARGET.plan(make_graph(dense_25_config(hidden_size=128, intermediate_size=272)), "Q4_1")
    fallen = {f.tensor: (f.wanted, f.used) for f in plan.fallbacks}
    assert fallen.pop("token_embd.weight") == ("Q6_K", "Q8_0")
    assert fallen == {f"blk.{i}.ffn_down.weight": ("Q4_1", "F16") for i in range(4)}
    with refused("blk.0.ffn_down.weight", "272", error=UsageError):
        plan.refuse_fallbacks()


def by_address(graph: WeightGraph) -> dict[Address, Stored]:
    return {(tensor.role, tensor.layer): tensor for tensor in stored_tensors(graph) if tensor.role is not None}


def test_the_scaling_factor_goes_into_the_down_projections(make_graph: Any) -> None:
    graph = make_graph(moe_config(routed_scaling_factor=2.5))
    stored = by_address(graph)
    down, up = (Role.EXPERT_DOWN, 1), (Role.EXPERT_UP, 1)
    assert np.array_equal(stored[down].view.read(), graph.layers[1][Role.EXPERT_DOWN].read() * np.float32(2.5))
    assert np.array_equal(stored[up].view.read(), graph.layers[1][Role.EXPERT_UP].read())
    assert "2.5" in TARGET.plan(graph, "F16").notes[0]


def test_the_scaling_factor_is_taken_out_again(make_graph: Any, tmp_path: Path) -> None:
    graph = make_graph(moe_config(routed_scaling_factor=2.5))
    found = TARGET.read(write_artifact(graph, "gguf", "F32", tmp_path))
    down = graph.layers[1][Role.EXPERT_DOWN].read()
    np.testing.assert_allclose(found[Role.EXPERT_DOWN, 1].read(), down, rtol=1e-6)


def test_missing_expert_biases_are_stored_as_zeros(make_graph: Any) -> None:
    graph = make_graph(moe_config(use_expert_bias=False))
    stored = by_address(graph)
    for layer in (1, 2, 3):
        assert not stored[Role.EXPERT_BIAS, layer].view.read().any()
    assert (Role.EXPERT_BIAS, 0) not in stored


def test_metadata_of_a_mixture(moe_graph: WeightGraph) -> None:
    pairs = metadata(moe_graph, stored_tensors(moe_graph), "BF16", quantized=False)
    assert [pair.key for pair in pairs] == [
        "general.architecture", "general.type", "general.name", "general.size_label",
        "lfm2moe.block_count", "lfm2moe.context_length", "lfm2moe.embedding_length", "lfm2moe.feed_forward_length",
        "lfm2moe.attention.head_count", "lfm2moe.attention.head_count_kv", "lfm2moe.rope.freq_base",
        "lfm2moe.attention.layer_norm_rms_epsilon", "lfm2moe.expert_count", "lfm2moe.expert_used_count",
        "general.file_type", "lfm2moe.expert_feed_forward_length", "lfm2moe.leading_dense_block_count",
        "lfm2moe.expert_gating_func", "lfm2moe.vocab_size", "lfm2moe.shortconv.l_cache",
        "general.quantization_version", "tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.ggml.tokens",
        "tokenizer.ggml.token_type", "tokenizer.ggml.merges", "tokenizer.ggml.bos_token_id",
        "tokenizer.ggml.eos_token_id", "tokenizer.ggml.padding_token_id", "tokenizer.ggml.add_bos_token",
        "tokenizer.ggml.add_sep_token", "tokenizer.chat_template",
    ]  # fmt: skip
    values = {pair.key: pair.value for pair in pairs}
    assert values["lfm2moe.attention.head_count_kv"] == [0, 2, 0, 2]
    assert values["general.file_type"] == 32
    heads = next(pair for pair in pairs if pair.key.endswith("head_count_kv"))
    assert heads.item is ValueType.INT32


def test_the_quantizer_appends_version_and_file_type(dense_graph: WeightGraph) -> None:
    weights = stored_tensors(dense_graph)
    before = metadata(dense_graph, weights, "F32", quantized=False)
    after = metadata(dense_graph, weights, "Q4_0", quantized=True)
    moved = ["general.quantization_version", "general.file_type"]
    assert [pair.key for pair in after] == [pair.key for pair in before if pair.key not in moved] + moved


@pytest.mark.parametrize(("name", "label"), [("lfm2-1.2b", "1.2B"), ("lfm2.5-8b-a1b", "32x959M")])
def test_size_labels(published: Callable[[str], WeightGraph], name: str, label: str) -> None:
    graph = published(name)
    pairs = metadata(graph, stored_tensors(graph), "F16", quantized=False)
    assert next(pair.value for pair in pairs if pair.key == "general.size_label") == label


CARD = """---
license: other
license_name: lfm1.0
license_link: LICENSE
tags: [liquid, edge]
pipeline_tag: text-generation
language:
- en
- no
base_model: LiquidAI/LFM2-1.2B-chat
datasets: https://example.org/corpus
---
# A model
"""


def test_the_model_card_and_sampling_reach_the_file(dense_graph: WeightGraph) -> None:
    generation = {"temperature": 0.3, "min_p": 0.15, "top_k": 50, "repetition_penalty": 1.05, "do_sample": True}
    assets = replace(dense_graph.assets, model_card=CARD, generation_config=generation)
    found = general(replace(dense_graph, assets=assets))
    found.pop("general.size_label")
    assert found == {
        "general.architecture": "lfm2",
        "general.type": "model",
        "general.sampling.top_k": 50,
        "general.sampling.min_p": 0.15,
        "general.sampling.temp": 0.3,
        "general.sampling.penalty_repeat": 1.05,
        "general.name": "Tiny Dense",
        "general.license": "other",
        "general.license.name": "lfm1.0",
        "general.license.link": "LICENSE",
        "general.base_model.count": 1,
        "general.base_model.0.name": "LFM2 1.2B Chat",
        "general.base_model.0.organization": "LiquidAI",
        "general.base_model.0.repo_url": "https://huggingface.co/LiquidAI/LFM2-1.2B-chat",
        "general.dataset.count": 1,
        "general.dataset.0.repo_url": "https://example.org/corpus",
        "general.tags": ["liquid", "edge", "text-generation"],
        "general.languages": ["en", "no"],
        "general.file_type": 0,
        "general.quantization_version": 2,
    }


@pytest.mark.parametrize("card", ["", "# A model", "---\nlicense: [", "---\n- a\n---\n", "---\nlicense: {a: b}\n---\n"])
def test_a_card_that_says_nothing_is_no_fault(dense_graph: WeightGraph, card: str) -> None:
    graph = replace(dense_graph, assets=replace(dense_graph.assets, model_card=card))
    assert general(graph) == general(dense_graph)


def general(graph: WeightGraph) -> dict[str, Any]:
    pairs = metadata(graph, stored_tensors(graph), "F32", quantized=False)
    return {pair.key: pair.value for pair in pairs if pair.key.startswith("general.")}


def test_the_license_travels_beside_the_file(dense_graph: WeightGraph) -> None:
    licensed = replace(dense_graph, assets=replace(dense_graph.assets, license=b"LFM 1.0"))
    assert TARGET.shared_files(licensed, []) == {"LICENSE": b"LFM 1.0"}
    assert TARGET.shared_files(dense_graph, []) == {}


def test_plans_are_json(dense_graph: WeightGraph) -> None:
    assert json.loads(json.dumps(TARGET.plan(dense_graph, "Q4_0").to_json()))["quant"] == "Q4_0"


def test_types_asked_for(make_graph: Any) -> None:
    graph = make_graph(moe_config(hidden_size=256, num_experts=12))
    asked = {"tensor_type": ("blk.1.attn=q8_0", "expert_up=IQ4_NL", "attn=Q5_0"), "token_embedding_type": "q5_1"}
    chosen = {t.name: t.encoding.name for t in TARGET.with_options(asked).plan(graph, "Q4_0").tensors}
    assert chosen["token_embd.weight"] == "Q5_1"
    assert (chosen["blk.1.attn_q.weight"], chosen["blk.3.attn_q.weight"]) == ("Q8_0", "Q5_0")
    assert chosen["blk.2.ffn_up_exps.weight"] == "IQ4_NL"
    assert (chosen["blk.1.attn_norm.weight"], chosen["blk.1.ffn_gate_inp.weight"]) == ("F32", "F32")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"tensor_type": ("attn=Q9",)}, "unknown type 'Q9'"),
        ({"tensor_type": ("attn(=Q8_0",)}, "not a regular expression"),
        ({"tensor_type": ("nothing=Q8_0",)}, "matches a tensor"),
        ({"tensor_type": ("Q8_0",)}, "ROLE_OR_REGEX=TYPE"),
        ({"token_embedding_type": "Q6_K"}, "128 are not a multiple"),
        ({"metadata": ("general.name",)}, "KEY=VALUE"),
        ({"metadata": ("lfm2.block_count=many",)}, "uint32"),
        ({"metadata": ("tokenizer.ggml.tokens=x",)}, "KEY=VALUE with the key of"),
        ({"nonsense": 1}, "no option --nonsense"),
    ],
)
def test_what_cannot_be_asked_for(dense_graph: WeightGraph, options: dict[str, Any], reason: str) -> None:
    with refused(reason, error=UsageError):
        TARGET.with_options(options).plan(dense_graph, "Q4_0")


def test_split_files_hold_what_one_would(moe_graph: WeightGraph, write_quant: Any) -> None:
    whole, split = write_quant(moe_graph, "Q8_0"), write_quant(moe_graph, "Q8_0", split_max_size=100_000)
    names = [path.name for path in split.files]
    stem = whole.path.stem
    assert stem == "Tiny-Moe-8x472K-Q8_0"
    assert names == [f"{stem}-{i + 1:05}-of-{len(names):05}.gguf" for i in range(len(names))]
    found = [read_gguf(path) for path in split.files]
    assert [file.metadata["split.no"] for file in found] == list(range(len(names)))
    assert {file.metadata["split.count"] for file in found} == {len(names)}
    expected = read_gguf(whole.path)
    assert {file.metadata["split.tensors.count"] for file in found} == {len(expected.tensors)}
    assert found[0].metadata.items() >= expected.metadata.items() and len(found[1].metadata) == 3
    first, second = TARGET.read(whole), TARGET.read(split)
    assert list(first) == list(second)
    assert all(np.array_equal(first[address].read(), second[address].read()) for address in first)


def test_metadata_can_be_overridden(dense_graph: WeightGraph, write_quant: Any) -> None:
    given = ("general.name=Mine", "lfm2.context_length=4096", "general.author=me")
    found = read_gguf(write_quant(dense_graph, "Q4_0", metadata=given).path).metadata
    assert (found["general.name"], found["lfm2.context_length"], found["general.author"]) == ("Mine", 4096, "me")


@pytest.mark.parametrize(
    ("given", "stem"),
    [
        ((), "Tiny-Dense-690K-Q4_0"),
        (("general.basename=LFM2", "general.size_label=1.2B", "general.version=v2"), "LFM2-1.2B-v2-Q4_0"),
        (("general.name=../a b/c:d",), "a-b-c-d-690K-Q4_0"),
    ],
)
def test_file_names_follow_the_metadata(dense_graph: WeightGraph, given: tuple[str, ...], stem: str) -> None:
    assert TARGET.with_options({"metadata": given}).plan(dense_graph, "Q4_0").main_file == f"{stem}.gguf"


def test_a_long_name_still_fits_a_file_system(dense_graph: WeightGraph) -> None:
    for name in ("x" * 300, "港" * 100):
        main_file = TARGET.plan(replace(dense_graph, name=name), "Q4_K_M").main_file
        assert main_file.endswith("-Q4_K_M.gguf") and len(main_file.encode()) < 220


def test_refined_files_say_so(dense_graph: WeightGraph) -> None:
    exact = TARGET.plan(dense_graph, "Q4_0")
    plan = TARGET.with_options({"refine": True}).plan(dense_graph, "Q4_0")
    assert plan.main_file == exact.main_file.replace("-Q4_0", "-refined-Q4_0")
    assert any("not llama-quantize's" in note for note in plan.notes)
    assert {t.encoding.name for t in plan.tensors} == {"Q4_0_refined", "Q8_0_refined", "F32"}
    assert plan.tensor_bytes == exact.tensor_bytes
    floats = TARGET.with_options({"refine": True}).plan(dense_graph, "F16")
    assert (floats.main_file, floats.notes) == (TARGET.plan(dense_graph, "F16").main_file, ())
