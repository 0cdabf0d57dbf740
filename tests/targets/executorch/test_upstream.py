"""What upstream's own LFM2 does with the same weights, and where it must not be followed."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import bundled
from support.export_llm import export_llm_command

from .conftest import CONTEXT, Exported

pytestmark = [pytest.mark.peers, pytest.mark.slow]

_TOLERANCE = 1e-3
FIRST, SECOND = "The town", "My name is written on the first page of the book."


@pytest.fixture(scope="module")
def upstream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundled dense model in float32, exported by `export_llm`."""
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    folder = tmp_path_factory.mktemp("upstream")
    path = folder / "upstream.pte"
    command = export_llm_command(_in_one_file(folder / "checkpoint"), folder, path, context=CONTEXT)
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, capture_output=True, env=environment, cwd=folder)  # it logs into outputs/
    return path


def _in_one_file(folder: Path) -> Path:
    """The bundled dense model as upstream's conversion of weights demands it."""
    from safetensors.torch import load_file, save_file

    source = bundled.path("dense")
    shards = [load_file(path) for path in sorted(source.glob("*.safetensors"))]
    folder.mkdir()
    shutil.copy(source / "config.json", folder)
    save_file({name: tensor for shard in shards for name, tensor in shard.items()}, folder / "model.safetensors")
    return folder


def test_the_first_conversation_is_ours(upstream: Path, exported: Callable[..., Exported]) -> None:
    found = exported("dense", "fp32")
    for text in (FIRST, SECOND):
        ids = found.graph.tokenizer.encode(text)
        np.testing.assert_allclose(
            _load(upstream).call(ids, 0), _load(found.artifact.path).call(ids, 0), atol=_TOLERANCE
        )


def test_the_second_starts_from_its_end(upstream: Path, exported: Callable[..., Exported]) -> None:
    """Upstream never clears the window of a convolution: at position 0 it still holds the last tokens read."""
    found = exported("dense", "fp32")
    first, second = map(found.graph.tokenizer.encode, (FIRST, SECOND))
    alone, after = _again(_load(upstream), first, second)
    assert _cosine(alone, after) < 0.995
    assert np.abs(alone - after).max() > 100 * _TOLERANCE
    alone, after = _again(_load(found.artifact.path), first, second)
    np.testing.assert_array_equal(alone, after)


def _load(path: Path) -> Any:
    """A runner with a state of its own: a program loaded anew."""
    from lfm_convert.targets.executorch.runner import ExecutorchRunner

    return ExecutorchRunner(path, threads=1)


def _again(runner: Any, first: list[int], second: list[int]) -> tuple[Any, Any]:
    """Logits of a prompt in a fresh runner, and of the same prompt after another conversation."""
    alone = runner.call(first, 0)
    runner.call(second, 0)
    return alone, runner.call(first, 0)


def _cosine(a: Any, b: Any) -> float:
    return float((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b))
