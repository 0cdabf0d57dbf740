"""GGUF files of every family: run by llama.cpp, quantised by it, converted by its converter, and read back.

What is run is printed as a table by `pytest -rP`; where a peer is not installed the tests say so.
"""

from __future__ import annotations

import filecmp
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State
from lfm_convert.quantize.policies.gguf import FILE_TYPES
from lfm_convert.targets.gguf.runner import missing
from lfm_convert.targets.gguf.source import open_source
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact
from support.family_configs import PUBLISHED, small
from support.family_models import make_model
from support.fitting_models import some_slow
from support.gguf_dry_run import check_plans
from support.llama_cpp import KNOWN_AS_LFM2, convert

pytestmark = pytest.mark.peers

PROMPT = np.random.default_rng(5).integers(8, 500, 40).tolist()
LONG_PROMPT = np.random.default_rng(6).integers(8, 500, 300).tolist()
# llama.cpp looks GELU up in a table of half precision.
MAX_DIFFERENCE, MAX_OF_GELU = 1e-4, 1e-2

_PHI: dict[str, Any] = {"original_max_position_embeddings": 256, "max_position_embeddings": 1024}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
# What the small models need to be what llama.cpp's graphs and converter take the published ones for.
_OWN: dict[str, dict[str, Any]] = {
    "gemma-3-270m": {"query_pre_attn_scalar": 32, "num_hidden_layers": 7, "sliding_window_pattern": 6},
    "Phi-4-mini": {
        **_PHI, "rope_scaling": {
            "type": "longrope", "short_factor": [1.0 + 0.01 * i for i in range(6)],
            "long_factor": [1.0 + 0.5 * i for i in range(6)],
        },
    },
    "Granite-4.0-1B": {"intermediate_size": 96, "mamba_n_groups": 1, "mamba_d_state": 16, "mamba_d_conv": 4},
}  # fmt: skip
FAMILIES = (
    "Qwen3-0.6B", "Qwen3-30B-A3B", "Llama-3.2-1B", "SmolLM3-3B", "Granite-3.3-2B", "Granite-4.0-1B",
    "Granite-3.1-1B-A400M", "gemma-3-270m", "Phi-4-mini",
)  # fmt: skip
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in FAMILIES},
    "qwen3 untied, yarn": ("Qwen3-0.6B", {"tie_word_embeddings": False, "rope_scaling": _YARN}),
    "qwen3 yarn with a factor": ("Qwen3-0.6B", {"rope_scaling": {**_YARN, "attention_factor": 0.7, "beta_fast": 20.0}}),
    "llama linear": ("Llama-3.2-1B", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
    "llama biased": ("Llama-3.2-1B", {"attention_bias": True, "tie_word_embeddings": False}),
    "granite 4 without rope": ("Granite-4.0-1B", {"position_embedding_type": "nope"}),
    "gemma, other windows, linear": (
        "gemma-3-270m", {"sliding_window_pattern": 3, "rope_scaling": {"rope_type": "linear", "factor": 8.0}},
    ),
    "phi, default rope of part of a head": ("Phi-4-mini", {"rope_scaling": None}),
}  # fmt: skip


def made(folder: Path, name: str, **fields: Any) -> WeightGraph:
    return open_graph(make_model(folder, small(name, **{**_OWN.get(name, {}), **fields})))


def written(graph: WeightGraph, quant: str, folder: Path, **options: Any) -> Artifact:
    target = TARGET.with_options({"pre": "lfm2", **options})
    plan = target.plan(graph, quant)
    folder.mkdir(parents=True, exist_ok=True)
    target.write(plan, graph, folder, Execution())
    path = folder / plan.main_file
    return Artifact(path, folder, TARGET.name, plan.quant, plan.class_name, (path,))


def expected(graph: WeightGraph, prompt: Sequence[int]) -> np.ndarray:
    return Forward(graph).extend(State(1), [prompt])[0]


def limit(name: str) -> float:
    return MAX_OF_GELU if name.startswith("gemma") else MAX_DIFFERENCE


@pytest.mark.skipif(bool(missing()), reason=f"llama.cpp is not installed: {missing()}")
@pytest.mark.parametrize("variant", VARIANTS)
def test_it_runs_as_the_reference(variant: str, tmp_path: Path, record_property: Any) -> None:
    name, fields = VARIANTS[variant]
    graph = made(tmp_path / "model", name, **fields)
    artifact = written(graph, "F32", tmp_path / "out")
    wanted = expected(graph, PROMPT)
    with closing(TARGET.run(artifact, threads=1)) as runner:
        difference = float(np.abs(runner.logits(PROMPT)[:, : wanted.shape[1]] - wanted).max())
    record_property("difference", difference)
    assert difference <= limit(name)
    assert np.abs(wanted).max() > 0.3  # so that the limit says something
    back = open_source(artifact.path)
    assert back is not None
    assert np.array_equal(expected(back, PROMPT), wanted)
    again = written(back, "F32", tmp_path / "again", outfile=artifact.path.name)
    ours, theirs = TARGET.read(artifact), TARGET.read(again)
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[address].read(), theirs[address].read()) for address in ours)


@pytest.mark.skipif(bool(missing()), reason=f"llama.cpp is not installed: {missing()}")
def test_texts_longer_than_the_trained_context_and_shorter_ones_after_them(tmp_path: Path) -> None:
    graph = made(tmp_path / "model", "Phi-4-mini")
    artifact = written(graph, "F32", tmp_path / "out")
    with closing(TARGET.run(artifact, threads=1)) as runner:
        for prompt in (LONG_PROMPT, PROMPT):
            assert np.abs(runner.logits(prompt) - expected(graph, prompt)).max() <= MAX_DIFFERENCE
    note = next(note for note in TARGET.plan(graph, "F32").notes if "long texts" in note)
    assert "larger than 256 tokens" in note


@pytest.mark.parametrize("name", some_slow(FAMILIES, quick={"Llama-3.2-1B", "Phi-4-mini", "Qwen3-30B-A3B"}))
def test_quantised_files_are_llama_quantizes(name: str, tmp_path: Path) -> None:
    """Whole files, of rows that super-blocks divide."""
    llama = pytest.importorskip("cyllama.llama.llama_cpp")
    wide: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 8}
    if "A3B" in name:
        wide["moe_intermediate_size"] = 256
    if name.startswith("Phi"):
        n_pairs = 24
        wide["rope_scaling"] = {
            "type": "longrope", "short_factor": [1.0] * n_pairs, "long_factor": [2.0] * n_pairs,
        }  # fmt: skip
    if name == "SmolLM3-3B":
        wide |= {"no_rope_layers": [1, 1, 1, 0] * 2, "layer_types": ["full_attention"] * 8}
    if name == "Granite-4.0-1B":
        wide |= {"layer_types": ["attention"] * 8, "shared_intermediate_size": 256, "mamba_d_head": 64}
    graph = made(tmp_path / "model", name, **wide)
    original = written(graph, "F32", tmp_path / "out").path
    for quant in ("Q4_K_M", "Q4_0", "IQ4_XS", "Q2_K"):
        params = llama.LlamaModelQuantizeParams()
        params.ftype, params.nthread = FILE_TYPES[quant], 1
        theirs = tmp_path / "theirs.gguf"
        llama.model_quantize(str(original), str(theirs), params)
        assert filecmp.cmp(written(graph, quant, tmp_path / "out").path, theirs, shallow=False), quant


@pytest.mark.parametrize("name", some_slow(PUBLISHED, quick={"Qwen3-0.6B", "gemma-3-1b", "Phi-4-mini"}))
def test_plans_of_published_models_are_llama_quantizes(name: str, tmp_path: Path) -> None:
    pytest.importorskip("cyllama.llama.llama_cpp")
    pytest.importorskip("gguf")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED[name]))
    check_plans(open_graph(tmp_path, name=name, weights=False), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_float_files_are_the_converters(name: str, tmp_path: Path) -> None:
    """Whole files; the converter's table of tokenizer hashes is told that it knows the vocabulary made here."""
    fields = {"vocab_size": 526} if name.startswith("gemma") else {}  # it cuts rows beyond the tokenizer
    graph = made(tmp_path / name, name, **fields)
    if name.startswith("Phi"):
        path = graph.folder / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GPT2Tokenizer"}))
    theirs = convert(graph.folder, tmp_path / "theirs.gguf", "f32", patch=KNOWN_AS_LFM2)
    assert filecmp.cmp(written(open_graph(graph.folder), "F32", tmp_path / "out").path, theirs, shallow=False)


@pytest.mark.skipif(bool(missing()), reason=f"llama.cpp is not installed: {missing()}")
@pytest.mark.parametrize(
    ("name", "modules"),
    [
        ("Llama-3.2-1B", ["q_proj", "k_proj", "o_proj"]),
        ("Phi-4-mini", ["qkv_proj", "gate_up_proj"]),
        ("Granite-4.0-1B", ["q_proj", "shared_mlp.input_linear"]),
    ],
)
def test_an_adapter_beside_its_base_is_the_merged_model(name: str, modules: list[str], tmp_path: Path) -> None:
    """Rows move as those of the weights do; fused modules stay fused or come apart as the weights."""
    pytest.importorskip("peft")
    from lfm_convert.convert.cli.main import main
    from support.llama_lora import logits_with
    from support.peft_adapters import make_adapter

    graph = made(tmp_path / "model", name)
    adapter = make_adapter(graph.folder, tmp_path / "adapter", target_modules=modules)
    lora = tmp_path / "lora.gguf"
    assert main(["lora", str(graph.folder), "--adapter", str(adapter), "-o", str(lora), "-q", "F32"]) == 0
    common = [str(graph.folder), "--target", "gguf", "--quant", "F32", "--no-validate", "--out"]
    assert main([*common, str(tmp_path / "plain")]) == 0
    assert main([*common, str(tmp_path / "merged"), "--adapter", str(adapter), "--merge-dtype", "float32"]) == 0
    plain, merged = (next((tmp_path / each).glob("*.gguf")) for each in ("plain", "merged"))
    wanted = logits_with(merged, None, PROMPT)
    assert np.abs(logits_with(plain, lora, PROMPT) - wanted).max() < 1e-3
    assert np.abs(logits_with(plain, None, PROMPT) - wanted).max() > 0.1
