"""Fixtures of the validator's tests: its fake target in worker processes, and small prompt sets."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.validate.prompts import Prompt


@pytest.fixture
def fake_runtime(monkeypatch: pytest.MonkeyPatch) -> str:
    """Lets worker processes import the fake target; the value is what `find_target` takes."""
    from support.fake_target import FIND_TARGET

    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")  # tiny matrices: more threads only wait for each other
    return FIND_TARGET


@pytest.fixture(scope="session")
def prompts() -> tuple[Prompt, ...]:
    """Ids of the tiny checkpoints: seven prompts of 1 to 60 tokens, 169 in all."""
    rng = np.random.default_rng(0)
    lengths = (1, 2, 4, 20, 30, 52, 60)
    return tuple(Prompt(id=f"p{n}", ids=(1, *rng.integers(14, 512, n - 1).tolist())) for n in lengths)
