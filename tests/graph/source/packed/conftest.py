"""A small checkpoint whose weights each test packs."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.checkpoints import dense_config, make_checkpoint


@pytest.fixture(scope="session")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Hidden 128, a convolution and an attention, no tokenizer."""
    config = dense_config(num_hidden_layers=2, attention=(1,))
    return make_checkpoint(tmp_path_factory.mktemp("packed") / "two-layers", config, tokenizer=False)


@pytest.fixture
def dense(two_layers: Path, tmp_path: Path) -> Path:
    """A copy of its own for each test."""
    return Path(shutil.copytree(two_layers, tmp_path / "model"))
