"""Models that give vectors as GGUF: the bytes of llama.cpp's own converter and quantizer, and vectors of llama.cpp's."""

from __future__ import annotations

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward, State, unit_vectors
from lfm_convert.quantize.policies.gguf import FILE_TYPES
from lfm_convert.targets.gguf.reader import read_weights
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from lfm_convert.validate.results import Verdict
from support.encoders import KINDS, make_encoder
from support.gguf_files import rewritten
from support.llama_cpp import KNOWN_AS_LFM2, convert

MAX_DISTANCE = 1e-5
LAYERS = ["conv", "full_attention"] * 2
_DRAWN = np.random.default_rng(11)
PROMPTS = [[1, *_DRAWN.integers(14, 512, n - 1).tolist()] for n in (1, 2, 40, 300)]


@pytest.fixture(params=KINDS)
def encoder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return make_encoder(tmp_path / "Vectors-1M", request.param, hidden_size=256, layer_types=LAYERS)


def distance(ours: Float32, theirs: Float32) -> float:
    """The largest of one minus the cosines."""
    assert ours.shape == theirs.shape
    return float((1 - (unit_vectors(ours) * unit_vectors(theirs)).sum(axis=1)).max())


@pytest.mark.parametrize("quant", ["F32", "Q8_0", "Q4_K_M"])
def test_llama_cpp_gives_the_vectors_of_the_stored_weights(encoder: Path, quant: str, write_quant: Any) -> None:
    graph = open_graph(encoder)
    artifact = write_quant(graph, quant)
    forward = Forward(graph.with_weights(read_weights(artifact.files)))
    runner = TARGET.run(artifact, threads=2)
    limit = MAX_DISTANCE if quant == "F32" else 1e-2  # others round activations as they round weights
    for prompt, states in zip(PROMPTS, forward.states(State(len(PROMPTS)), PROMPTS), strict=True):
        assert distance(forward.vectors(states), runner.vectors(prompt)) <= limit
    runner.close()


@pytest.mark.peers
@pytest.mark.slow
def test_whole_files_are_llama_cpps(encoder: Path, write_quant: Any, tmp_path: Path) -> None:
    llama = pytest.importorskip("cyllama.llama.llama_cpp")
    graph = open_graph(encoder)
    for outtype in ("bf16", "f32"):
        there = tmp_path / outtype
        there.mkdir()
        theirs = convert(graph.folder, there, outtype, patch=KNOWN_AS_LFM2)
        ours = write_quant(graph, outtype).path
        assert ours.name == theirs.name.replace("-ALL_F32", "-F32")
        assert filecmp.cmp(ours, theirs, shallow=False), outtype
    for quant in ("Q4_0", "Q4_K_M", "Q8_0"):
        params = llama.LlamaModelQuantizeParams()
        params.ftype, params.nthread = FILE_TYPES[quant], 2
        llama.model_quantize(str(theirs), str(tmp_path / "quantized.gguf"), params)
        assert filecmp.cmp(write_quant(graph, quant).path, tmp_path / "quantized.gguf", shallow=False), quant


def test_a_file_of_vectors_is_no_source(tmp_path: Path, write_quant: Any) -> None:
    artifact = write_quant(open_graph(make_encoder(tmp_path / "model", "colbert")), "BF16")
    with pytest.raises(InputError, match="holds a model that gives vectors: convert the checkpoint it was made from"):
        TARGET.open(artifact.path)


def test_layers_that_see_differently_are_refused(tmp_path: Path) -> None:
    graph = open_graph(make_encoder(tmp_path / "model"))
    first, *others = graph.config.layers
    causal = tuple(replace(each, block=replace(each.block, is_causal=True)) for each in first[:1])
    mixed = replace(graph, config=replace(graph.config, layers=((*causal, *first[1:]), *others)))
    with pytest.raises(UsageError, match="some layers that see both ways, and others that do not"):
        TARGET.plan(mixed, "Q8_0")


FAULTS: dict[str, tuple[str, dict[str, Any], dict[str, Any], str]] = {
    "causal": ("colbert", {"lfm2.attention.causal": None}, {}, "execution_distance_p50 is "),
    "last token pooled": (
        "embedding",
        {},
        {"metadata": "lfm2.pooling_type=3"},
        "a runtime where the vector is the last token's",
    ),
    "projection missing": (
        "colbert",
        {"lfm2.embedding_length_out": None},
        {"leaves_out": "dense_2.weight"},
        "the artifact cannot be read: the artifact holds no projection",
    ),
}


@pytest.mark.parametrize("fault", [None, *FAULTS])
def test_the_gate_knows_a_file_that_says_otherwise(fault: str | None, tmp_path: Path, write_quant: Any) -> None:
    """What llama.cpp makes of a file whose writer left out what makes its model an encoder."""
    kind, pairs, other, said = FAULTS[fault] if fault else ("embedding", {}, {}, "no manifest: provenance unknown")
    graph = open_graph(make_encoder(tmp_path / "Vectors-1M", kind))
    options = {"metadata": (other["metadata"],)} if "metadata" in other else {}
    written = write_quant(graph, "BF16", **options).path
    if pairs:
        tensors = {other["leaves_out"]: None} if "leaves_out" in other else {}
        written = rewritten(written, tmp_path / written.name, pairs=pairs, tensors=tensors)
    (artifact,) = TARGET.recognise(written)
    prompts = tuple(Prompt(id=str(len(ids)), ids=tuple(ids)) for ids in PROMPTS)
    (result,) = validate([artifact], graph, prompts=prompts, threads=2).results
    assert result.verdict is (Verdict.FAIL if fault else Verdict.PASS)
    assert said in result.message
