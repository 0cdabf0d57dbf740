"""GGUF files as sources: what a file says gives back the checkpoint it was made from, and what it cannot be is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.source.chat import render_chats
from lfm_convert.targets.gguf.source import open_source
from support.gguf_files import rewritten
from support.refusals import refused

TEXTS = (
    "", "a", "The harbour wakes before the town does, isn't it?", "12345 678\r\n\r\n  x\t\ty  ", "Straße 港は町より先 🙂🙂",
    "<|im_start|>user\nHello<|im_end|>\n", "<|im_start|", "<|pad|><|endoftext|>x<|startoftext|>", " \n \n\n", "'LL WE'RE",
)  # fmt: skip
CHAT = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "?"}]


@pytest.fixture(params=["tiny_dense", "tiny_moe", "bundled:dense", "bundled:moe", "bundled:lfm3"])
def original(request: pytest.FixtureRequest) -> WeightGraph:
    if request.param.startswith("bundled:"):
        return open_graph(bundled.path(request.param.removeprefix("bundled:")))
    return open_graph(request.getfixturevalue(request.param))


def opened(path: Path) -> WeightGraph:
    found = open_source(path)
    assert found is not None
    return found


def test_a_checkpoint_comes_back(original: WeightGraph, write_quant: Any) -> None:
    source = opened(write_quant(original, "F32").path)
    config = original.config
    for name in ("model_type", "hidden_size", "vocab_size", "layers", "final_norm", "context_length", "tied"):
        assert getattr(source.config, name) == getattr(config, name), name
    for name in ("bos_token_id", "pad_token_id"):
        assert getattr(source.config, name) == getattr(config, name), name
    assert source.quantised_as is None and source.notes == ()
    for found, weight in zip(source.weights(), original.weights(), strict=True):
        assert found.address == weight.address and np.array_equal(found.view.read(), weight.view.read())
    _texts_come_back(source, original)


def _texts_come_back(source: WeightGraph, original: WeightGraph) -> None:
    own, found = original.tokenizer, source.tokenizer
    assert own is not None and found is not None
    for text in (*TEXTS, *own.vocab):
        for special in (True, False):
            assert found.encode(text, special=special) == own.encode(text, special=special), text
    assert found.vocab == own.vocab
    assert found.decode(range(own.n_tokens)) == own.decode(range(own.n_tokens))
    assert source.assets.special_tokens.items() >= {
        (key, text)
        for key, text in original.assets.special_tokens.items()
        if key in ("bos_token", "eos_token", "pad_token")
    }
    template = original.assets.chat_template
    assert source.assets.chat_template == template and template is not None
    texts = [render_chats(template, [CHAT], special_tokens=each.assets.special_tokens) for each in (source, original)]
    assert texts[0] == texts[1]
    sampling = ("temperature", "min_p", "repetition_penalty", "do_sample", "pad_token_id", "bos_token_id")
    own_settings, settings = original.assets.generation_config, source.assets.generation_config
    assert {k: settings.get(k) for k in sampling if own_settings.get(k)} == {
        k: own_settings[k] for k in sampling if own_settings.get(k)
    }
    # llama.cpp also ends at what it knows by its text
    assert set(source.stop_ids) - {own.vocab["<|endoftext|>"]} == set(original.stop_ids) - {own.vocab["<|endoftext|>"]}
    assert source.stops.main == original.stops.main


@pytest.mark.parametrize("name", ["dense", "moe"])
def test_ids_and_stops_are_llama_cpps(name: str, write_quant: Any) -> None:
    pytest.importorskip("xllamacpp")
    from lfm_convert.targets.gguf.target import TARGET

    artifact = write_quant(open_graph(bundled.path(name)), "Q8_0")
    source, llama = opened(artifact.path), TARGET.run(artifact, threads=1)
    try:
        assert source.tokenizer is not None
        for text in TEXTS[1:]:
            assert source.tokenizer.encode(text) == llama.tokenize(text), text
        assert sorted(source.stop_ids) == llama.stops()["llama.cpp"]
    finally:
        llama.close()


@pytest.mark.parametrize(
    "quant", ["F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_K_M", "Q6_K", "Q3_K_M", "IQ4_XS", "MXFP4_MOE"]
)
def test_values_are_those_of_gguf_py(quant: str, moe_graph: WeightGraph, write_quant: Any) -> None:
    import gguf

    path = write_quant(moe_graph, quant).path
    source = opened(path)
    is_float = quant in ("F16", "BF16")
    assert source.quantised_as == (None if is_float else quant)
    expected = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in gguf.GGUFReader(path).tensors}
    for weight in source.weights():
        assert np.array_equal(weight.view.read(), expected.pop(weight.view.name).reshape(weight.shape)), (
            weight.view.name
        )
    assert not expected


def test_a_split_file_is_one_model(moe_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> None:
    artifact = write_quant(moe_graph, "Q8_0", split_max_size=300_000)
    folder = tmp_path / "split"
    folder.mkdir()
    parts = [Path(shutil.copy(file, folder)) for file in artifact.files]
    graphs = [opened(path) for path in (folder, parts[0], parts[-1])]
    assert {graph.name for graph in graphs} == {parts[0].name.removesuffix(f"-00001-of-{len(parts):05}.gguf")}
    assert graphs[0].checkpoint is not None
    assert [stamp.path for stamp in graphs[0].checkpoint.stamps] == parts


def test_small_floats_take_the_type_of_the_rest_if_it_holds_them(
    moe_graph: WeightGraph, write_quant: Any, tmp_path: Path
) -> None:
    path = write_quant(moe_graph, "Q8_0").path
    source = opened(path)
    assert {view.dtype for view in (source[Role.FINAL_NORM], source[Role.EMBED])} == {DType.F16}
    assert source.layers[2][Role.EXPERT_BIAS].dtype is DType.F32
    values = source[Role.FINAL_NORM].read()
    values[0] = 1e-9
    changed = opened(rewritten(path, tmp_path / "x.gguf", pairs={}, tensors={"token_embd_norm.weight": values}))
    assert changed[Role.FINAL_NORM].dtype is DType.F32 and changed[Role.FINAL_NORM].read()[0] == np.float32(1e-9)


def test_queries_keys_and_values_in_one_tensor(dense_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> None:
    path = write_quant(dense_graph, "F32").path
    layer = dense_graph.layers[1]
    parts = [layer[role].read() for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)]
    names = {f"blk.1.attn_{letter}.weight": None for letter in "qkv"}
    fused = {"blk.1.attn_qkv.weight": np.concatenate(parts)}
    source = opened(rewritten(path, tmp_path / "x.gguf", pairs={}, tensors={**names, **fused}))
    assert source.config.layers == dense_graph.config.layers
    for role, values in zip((Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V), parts, strict=True):
        assert np.array_equal(source.layers[1][role].read(), values)


def test_a_folded_factor_stays_where_it_is(moe_graph: WeightGraph, write_quant: Any) -> None:
    from dataclasses import replace

    from lfm_convert.graph.blocks import Mixture

    scaled = tuple(
        tuple(
            replace(branch, block=replace(branch.block, scaling=2.5)) if isinstance(branch.block, Mixture) else branch
            for branch in branches
        )
        for branches in moe_graph.config.layers
    )
    source = opened(write_quant(replace(moe_graph, config=replace(moe_graph.config, layers=scaled)), "F32").path)
    assert source.config.mixture is not None and source.config.mixture.scaling == 1
    own, found = (graph.layers[2][Role.EXPERT_DOWN].read() for graph in (moe_graph, source))
    assert np.array_equal(found, own * np.float32(2.5))


FAULTS: dict[str, tuple[dict[str, Any], str]] = {
    "missing numbers": (
        {"lfm2moe.block_count": None, "lfm2moe.attention.head_count": None},
        "lfm2moe.block_count is missing; lfm2moe.attention.head_count is missing",
    ),
    "kinds": (
        {"lfm2moe.block_count": "four", "lfm2moe.expert_count": -3, "lfm2moe.rope.freq_base": True},
        "lfm2moe.block_count is 'four': expected an integer, zero or more; lfm2moe.rope.freq_base is True: expected a "
        "finite number; lfm2moe.expert_count is -3",
    ),
    "layers": ({"lfm2moe.block_count": 5}, "attention.head_count_kv has 4 entries but block_count is 5"),
    "many layers": ({"lfm2moe.block_count": 2**30}, "block_count is 1073741824, and there are"),
    "heads": ({"lfm2moe.attention.head_count": 3}, "attention.head_count 3 is not a multiple of every"),
    "huge heads": ({"lfm2moe.attention.key_length": 2**20}, "heads have 1048576 elements"),
    "another size": ({"lfm2moe.attention.key_length": 64}, "with blocks that LFM2-MoE has not"),
    "experts": ({"lfm2moe.expert_used_count": None}, "expert_used_count is missing, and there are experts"),
    "more of them": ({"lfm2moe.expert_used_count": 9}, "num_experts_per_tok 9 exceeds num_experts 8"),
    "no dense layer": ({"lfm2moe.leading_dense_block_count": 0}, "with blocks that LFM2-MoE has not"),
    "softmax": ({"lfm2moe.expert_gating_func": 1}, "expert_gating_func is 1: expected 2, sigmoids"),
    "half a head": ({"lfm2moe.rope.dimension_count": 16}, "rope.dimension_count is 16: expected 32"),
    "stretched": ({"lfm2moe.rope.scaling.type": "yarn"}, "rope.scaling.type is 'yarn': a rope that is scaled"),
    "convolutions": ({"lfm2moe.shortconv.l_cache": 1}, "conv_L_cache is 1: expected 2"),
    "rope": ({"lfm2moe.rope.freq_base": 0.5}, "a rope has the base 0.5"),
    "tokens": ({"tokenizer.ggml.tokens": ["a", "b", "a"]}, "tokens 0 and 2 are both 'a'; "),
    "types": ({"tokenizer.ggml.token_type": [1, 1]}, "tokenizer.ggml.token_type has 2 entries"),
    "merges": ({"tokenizer.ggml.merges": ["a b c"]}, "tokenizer.ggml.merges holds 'a b c': expected two tokens"),
    "an unknown merge": ({"tokenizer.ggml.merges": ["港港 x"]}, "refused by the tokenizers library"),
    "ids": ({"tokenizer.ggml.eos_token_id": 70000}, "tokenizer.ggml.eos_token_id is 70000: expected an id below 512"),
    "another kind": ({"tokenizer.ggml.model": "bert"}, "tokenizer.ggml.model is 'bert': expected 'gpt2'"),
    "no scores": ({"tokenizer.ggml.model": "llama"}, "tokenizer.ggml.scores has 0 entries, tokenizer.ggml.tokens 512"),
    "another cut": ({"tokenizer.ggml.pre": "kimi-k2"}, "tokenizer.ggml.pre is 'kimi-k2': expected lfm2, llama-bpe"),
    "template": ({"tokenizer.chat_template": 5}, "tokenizer.chat_template is no text"),
    "another model": ({"general.architecture": "falcon"}, "architecture 'falcon': expected one of lfm2, lfm2moe, lfm3"),
    "an adapter": ({"general.type": "adapter"}, "holds no language model: its general.type is 'adapter'"),
    "an image encoder": ({"general.type": "mmproj"}, "holds no language model: its general.type is 'mmproj'"),
    "importance": ({"general.type": "imatrix"}, "holds no language model: its general.type is 'imatrix'"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_what_contradicts_itself_is_refused(
    name: str, moe_graph: WeightGraph, write_quant: Any, tmp_path: Path
) -> None:
    pairs, sentence = FAULTS[name]
    path = rewritten(write_quant(moe_graph, "Q8_0").path, tmp_path / "x.gguf", pairs=pairs)
    with refused(path, sentence):
        source = opened(path)
        assert source.tokenizer is not None and source.tokenizer.backend


def test_tensors_that_are_missing_misshapen_or_of_no_such_model(
    moe_graph: WeightGraph, write_quant: Any, tmp_path: Path
) -> None:
    values = np.zeros(5, np.float32)
    tensors = {"blk.0.ffn_norm.weight": values, "blk.3.attn_norm.weight": None, "blk.2.attn_gate.weight": values}
    path = rewritten(write_quant(moe_graph, "F32").path, tmp_path / "x.gguf", pairs={}, tensors=tensors)
    with refused(
        path, "operator_norm of layer 3 is missing", "'blk.0.ffn_norm.weight' has shape [5]: expected [128]",
        "'blk.2.attn_gate.weight' is not part of the model",
    ):  # fmt: skip
        opened(path)


def test_weights_that_are_no_numbers_are_refused_when_they_are_read(
    moe_graph: WeightGraph, write_quant: Any, tmp_path: Path
) -> None:
    path = Path(shutil.copy(write_quant(moe_graph, "Q4_0").path, tmp_path / "x.gguf"))
    source = opened(path)
    view = source.layers[0][Role.CONV_IN]
    data = bytearray(path.read_bytes())
    at = view.place(3)[1]
    data[at : at + 2] = np.array([np.nan], "<f2").tobytes()
    path.write_bytes(data)
    found = opened(path).layers[0][Role.CONV_IN]
    for read in (found.rows, found.stored_rows, found.grid_rows):
        read(0, 3)
        with pytest.raises(InputError, match=r"in_proj\.weight' is not finite in row 3: expected finite weights"):
            read(2, 5)


def test_several_models_in_a_folder_and_none(moe_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> None:
    first, second = (write_quant(moe_graph, quant).path for quant in ("Q4_0", "Q8_0"))
    shutil.copy(first, tmp_path / "a.gguf")
    assert opened(tmp_path).quantised_as == "Q4_0"
    shutil.copy(second, tmp_path / "b.gguf")
    with refused(tmp_path, "holds the models a.gguf, b.gguf: name the file of one"):
        opened(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    assert open_source(tmp_path) is None
