"""Fixtures for all tests: tiny random checkpoints, made once a session. Treat the folders as read-only."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.validate import prompts as shared
from support.checkpoints import dense_config, make_checkpoint, moe_config

# A busy machine is no fault of what is tested.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

FIXTURES = Path(__file__).parent / "fixtures"

# Where `make wllama` installs it, also for tests that are not started by make.
os.environ.setdefault("LFM_CONVERT_WLLAMA", str(Path(__file__).parents[1] / ".clients/wllama"))


@pytest.fixture(scope="session")
def tiny_dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dense model: hidden 128, 4 layers (attention in 1 and 3), 512 tokens, bfloat16, tied head."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-dense", dense_config())


@pytest.fixture(scope="session")
def tiny_moe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture of experts: as tiny_dense, with 8 experts (4 at a time) after one dense layer."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-moe", moe_config())


@pytest.fixture(scope="session")
def tiny_moe_sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tiny_moe's weights in three shards with an index."""
    return make_checkpoint(tmp_path_factory.mktemp("checkpoints") / "tiny-moe-sharded", moe_config(), shards=3)


@pytest.fixture(scope="session")
def dense_graph(tiny_dense: Path) -> WeightGraph:
    return open_graph(tiny_dense)


@pytest.fixture(scope="session")
def moe_graph(tiny_moe: Path) -> WeightGraph:
    return open_graph(tiny_moe)


@pytest.fixture(scope="session")
def published_configs() -> Path:
    """Folder of published `config.json` files, one a model."""
    return FIXTURES / "configs"


@pytest.fixture
def published(published_configs: Path, tmp_path: Path) -> Callable[[str], WeightGraph]:
    """The graph of a published model, by the name of its config; without weights."""

    def opened(name: str) -> WeightGraph:
        shutil.copy(published_configs / f"{name}.json", tmp_path / "config.json")
        return open_graph(tmp_path, weights=False)

    return opened


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of four of the shared prompts: two texts, a chat, and a token. Judged on them, a model costs a third."""
    lines = Path(shared.__file__).with_name("prompts.jsonl").read_text(encoding="utf-8").splitlines()
    kinds = {kind: [line for line in lines if json.loads(line)["kind"] == kind] for kind in ("short", "text", "chat")}
    path = tmp_path_factory.mktemp("prompts") / "few.jsonl"
    path.write_text("\n".join([*kinds["short"][:1], *kinds["text"][:2], *kinds["chat"][:1]]), encoding="utf-8")
    return path
