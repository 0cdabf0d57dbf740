"""Our files against those of llama.cpp's own two steps, converter and quantizer: whole files, byte for byte."""

from __future__ import annotations

import filecmp
import json
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.policies.gguf import FILE_TYPES
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.llama_cpp import KNOWN_AS_LFM2, convert, write_llama_bpe

pytestmark = [pytest.mark.peers, pytest.mark.slow]
llama = pytest.importorskip("cyllama.llama.llama_cpp")
pytest.importorskip("transformers")

CARD = """---
license: other
license_name: lfm1.0
license_link: LICENSE
library_name: transformers
tags: [liquid, lfm2, edge]
pipeline_tag: text-generation
language:
- en
- no
- ja
base_model:
- LiquidAI/LFM2-1.2B-chat
- https://huggingface.co/LiquidAI/LFM2-350M-v2
- https://example.org/model
datasets: [LiquidAI/some-text-v1.1, plain]
model_creator: Someone
---
# A model
"""
SAMPLING = {"temperature": 0.3, "min_p": 0.15, "top_k": 50, "repetition_penalty": 1.05, "do_sample": True}
# `transformers` writes layer_types; the converter does not derive it from full_attn_idxs.
LAYERS = ["conv", "full_attention", "conv", "full_attention"]
DENSE = dense_config(hidden_size=256, layer_types=LAYERS, tie_word_embeddings=True)
MIXTURE = moe_config(hidden_size=256, moe_intermediate_size=256, num_experts=5)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """Writes a random checkpoint under a name, with card and sampling defaults."""

    def make(name: str, config: dict[str, Any], *, card: str = CARD) -> Path:
        folder = make_checkpoint(tmp_path / name, config)
        (folder / "README.md").write_text(card)
        generation = json.loads((folder / "generation_config.json").read_text())
        (folder / "generation_config.json").write_text(json.dumps({**generation, **SAMPLING}))
        return folder

    return make


def two_steps(original: Path, quant: str, out: Path) -> Path:
    params = llama.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], 2
    llama.model_quantize(str(original), str(out), params)
    return out


def all_equal(graph: WeightGraph, write_quant: Any, folder: Path, *, patch: str = "", **options: Any) -> None:
    """Floats as converted, under the same name, and quantised from each of them."""
    for outtype in ("bf16", "f32"):
        there = folder / outtype
        there.mkdir()
        theirs = convert(graph.folder, there, outtype, patch=patch)
        ours = write_quant(graph, outtype, **options).path
        assert ours.name == theirs.name.replace("-ALL_F32", "-F32")
        assert filecmp.cmp(ours, theirs, shallow=False), outtype
        for quant in ("Q4_0", "Q4_K_M"):
            quantized = two_steps(theirs, quant, folder / "quantized.gguf")
            assert filecmp.cmp(write_quant(graph, quant, **options).path, quantized, shallow=False), (outtype, quant)


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_whole_files_are_llama_cpps(checkpoint: Any, write_quant: Any, tmp_path: Path, config: dict[str, Any]) -> None:
    """Only the converter's table of tokenizer hashes is told that it knows the vocabulary made here."""
    graph = open_graph(checkpoint("LFM2-1M-Edge-v2", config))
    all_equal(graph, write_quant, tmp_path, patch=KNOWN_AS_LFM2)


@pytest.mark.parametrize("config", [DENSE, MIXTURE], ids=["dense", "mixture"])
def test_whole_files_with_a_vocabulary_the_converter_knows(
    checkpoint: Any, write_quant: Any, tmp_path: Path, config: dict[str, Any]
) -> None:
    """Nothing is patched: the converter knows Llama 3's vocabulary, 128,256 tokens and 280,147 merges, by its hash."""
    sized = {**config, "vocab_size": 128_256, "bos_token_id": 128_000, "eos_token_id": 128_001, "pad_token_id": None}
    folder = checkpoint("my-finetune", sized, card="# No front matter\n")
    (folder / "generation_config.json").unlink()
    assert write_llama_bpe(folder) == 128_256
    all_equal(open_graph(folder), write_quant, tmp_path, pre="llama-bpe")
