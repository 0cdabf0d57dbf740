"""vLLM on the CPU runs what is written."""

from __future__ import annotations

import subprocess
import sys

import pytest
from clients.servers import HERE, MUST_RUN, NAME, PYTHON


@pytest.mark.slow
@pytest.mark.peers
def test_greedy_text_is_that_of_transformers() -> None:
    """Of 20 prompts, outside near-ties, with groups of two sizes."""
    if not PYTHON.exists():
        pytest.skip(f"{NAME} is not installed: make clients")
    done = subprocess.run([sys.executable, str(HERE / "servers.py"), *MUST_RUN], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
