from __future__ import annotations

import json
from pathlib import Path

from lfm_convert.graph.source.config_file import parse_config
from lfm_convert.validate.memory import cache_bytes, run_bytes


def test_caches_of_the_1_2_b_model(published_configs: Path) -> None:
    config = parse_config(json.loads((published_configs / "lfm2-1.2b.json").read_text()))
    keys = 2 * 6 * 512 * 4096 * 2  # keys and values, 6 attention layers of 8 heads of 64, 16 bits
    windows = 10 * 2048 * 2 * 4  # 10 convolutions remember 2 tokens
    assert cache_bytes(config) == keys + windows
    for target, quant, itemsize in (
        ("gguf", "Q4_0", 2), ("mlx", "4bit", 2), ("onnx", "q4f16", 2), ("onnx", "q4", 4), ("executorch", "8da4w", 4)
    ):  # fmt: skip
        assert run_bytes(config, 10**9, target=target, quant=quant) == 10**9 + itemsize * keys // 2 + windows
