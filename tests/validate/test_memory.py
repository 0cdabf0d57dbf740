from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.manifest import MANIFEST_FILE
from lfm_convert.convert.pipeline import convert, plan
from lfm_convert.graph.blocks import Attention
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.source.config_file import parse_config
from lfm_convert.validate.memory import cache_bytes, plan_run_bytes, run_bytes
from lfm_convert.validate.own_memory import comparison_bytes, refuse_too_little


def test_caches_of_the_1_2_b_model(published_configs: Path) -> None:
    config = parse_config(json.loads((published_configs / "lfm2-1.2b.json").read_text()))
    keys = 2 * 6 * 512 * 4096 * 2  # keys and values, 6 attention layers of 8 heads of 64, 16 bits
    windows = 10 * 2048 * 2 * 4  # 10 convolutions remember 2 tokens
    assert cache_bytes(config) == keys + windows


def test_what_runs_is_the_files_their_copies_caches_and_a_portion(dense_graph: WeightGraph) -> None:
    """llama.cpp keeps Q4_0 a second time, ONNX Runtime has past and present caches, MLX neither."""
    config = dense_graph.config
    found = {}
    for target, quant in (("gguf", "Q8_0"), ("gguf", "Q4_0"), ("mlx", "4bit"), ("onnx", "q4"), ("onnx", "q4f16")):
        (planned,) = plan(dense_graph, target=target, quant=quant)
        found[quant] = [plan_run_bytes(config, planned, n) - planned.total_bytes for n in (1024, 2048)]
    grown = {quant: more - less for quant, (less, more) in found.items()}
    caches = cache_bytes(config, n_tokens=2048) - cache_bytes(config, n_tokens=1024)
    assert grown["Q8_0"] == grown["Q4_0"] == grown["4bit"] == caches
    attention = config.first(Attention)
    assert attention is not None
    scores = 512 * 1024 * attention.n_heads
    assert (grown["q4"], grown["q4f16"]) == (4 * caches + 4 * scores, 2 * caches + 6 * scores)
    assert found["4bit"][0] == cache_bytes(config, n_tokens=1024)
    assert found["Q4_0"][0] > found["Q8_0"][0]


def test_an_artifact_is_told_what_its_plan_is(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """By its manifest; without one a GGUF's own list of tensors says the same."""
    (planned,) = plan(dense_graph, target="gguf", quant="Q4_K_M")
    convert(dense_graph, target="gguf", quant="Q4_K_M", out=tmp_path)
    (artifact,) = find_artifacts(tmp_path)
    assert run_bytes(dense_graph.config, artifact) == plan_run_bytes(dense_graph.config, planned)
    (tmp_path / MANIFEST_FILE).unlink()
    (recognised,) = find_artifacts(tmp_path)
    assert recognised.is_recognised
    assert run_bytes(dense_graph.config, recognised) == plan_run_bytes(dense_graph.config, planned)


def test_comparing_needs_what_its_blocks_of_logits_take(dense_graph: WeightGraph) -> None:
    vocabulary = dense_graph.config.vocab_size
    assert comparison_bytes(dense_graph) > 3 * 4 * (dense_graph.n_parameters + 2048 * vocabulary)
    refuse_too_little(dense_graph, comparison_bytes(dense_graph))
    with pytest.raises(UsageError, match=r"--max-memory 100 MB is too little to compare with .*: at least \d+ MB"):
        refuse_too_little(dense_graph, 10**8)


def test_convert_refuses_too_little_before_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["bundled:dense", "--target", "mlx", "--out", str(tmp_path / "out"), "--max-memory", "180MB"]
    assert main(command) == 2
    assert "too little to compare with" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert main([*command, "--no-validate"]) == 0
