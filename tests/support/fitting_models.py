"""Small models of the families whose rows the quants' groups divide, for targets whose folders are a checkpoint's."""

from __future__ import annotations

from collections.abc import Iterable, Set
from typing import Any

import numpy as np
import pytest

from .family_configs import small

# One of each kind of class that runtimes have.
NAMES = [
    "Qwen3-0.6B", "Llama-3.2-1B", "SmolLM3-3B", "Granite-3.3-2B", "Granite-4.0-1B", "gemma-3-270m", "gemma-3-4b",
    "Phi-4-mini", "Qwen3-30B-A3B", "Granite-3.1-1B-A400M",
]  # fmt: skip
PROMPT: list[int] = np.random.default_rng(5).integers(8, 600, 40).tolist()
_SIZES = {"intermediate_size": 128, "moe_intermediate_size": 64, "shared_intermediate_size": 128}
_LONG = {"original_max_position_embeddings": 4096, "max_position_embeddings": 8192, "sliding_window": 8192}


def fitting(name: str, **fields: Any) -> dict[str, Any]:
    """In bfloat16; a rope has another table only for texts that no prompt is as long as."""
    config = small(name)
    config |= {key: value for key, value in _SIZES.items() if key in config} | {"torch_dtype": "bfloat16"}
    return config | (_LONG if "original_max_position_embeddings" in config else {}) | fields


def some_slow(cases: Iterable[str], *, quick: Set[str]) -> list[Any]:
    """Cases as parameters, of which all but the quick ones have the marker of slow tests."""
    return [case if case in quick else pytest.param(case, marks=pytest.mark.slow) for case in cases]
