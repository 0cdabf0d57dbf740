from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.source.config_file import parse_config
from lfm_convert.validate.memory import cache_bytes, run_bytes
from lfm_convert.validate.own_memory import comparison_bytes, refuse_too_little


def test_caches_of_the_1_2_b_model(published_configs: Path) -> None:
    config = parse_config(json.loads((published_configs / "lfm2-1.2b.json").read_text()))
    keys = 2 * 6 * 512 * 4096 * 2  # keys and values, 6 attention layers of 8 heads of 64, 16 bits
    windows = 10 * 2048 * 2 * 4  # 10 convolutions remember 2 tokens
    assert cache_bytes(config) == keys + windows
    for target, quant, itemsize in (
        ("gguf", "Q4_0", 2), ("mlx", "4bit", 2), ("onnx", "q4f16", 2), ("onnx", "q4", 4), ("executorch", "8da4w", 4)
    ):  # fmt: skip
        assert run_bytes(config, 10**9, target=target, quant=quant) == 10**9 + itemsize * keys // 2 + windows


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
