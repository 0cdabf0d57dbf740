"""Checkpoints and configs that mlx-lm itself can read."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from lfm_convert.convert import bundled

# What mlx-lm demands of a dense config, and transformers 5 no longer writes.
BLOCK_FIELDS = {"block_multiple_of": 256, "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": False}


@pytest.fixture(scope="session")
def bundled_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled dense model with the config fields that mlx_lm.convert needs."""
    folder = tmp_path_factory.mktemp("bundled") / "dense"
    shutil.copytree(bundled.path("dense"), folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"block_dim": config["hidden_size"], **BLOCK_FIELDS}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
