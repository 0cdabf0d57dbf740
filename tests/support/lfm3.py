"""What the tests of LFM3 share, whatever runs it: the ways in which its checkpoints may differ, and a prompt."""

from __future__ import annotations

from typing import Any

import numpy as np

FULL, SLIDING = "full_attention", "sliding_attention"
# Three windows of the tiny config, and some.
N_TOKENS = 56

# Fields of the config that differ from the tiny one's. Each test has further ones of its own.
VARIANTS: dict[str, dict[str, Any]] = {
    "as published": {},
    "without gate": {"use_attention_gate": False},
    "without sandwich": {"use_sandwich_norm": False},
    "without either": {"use_sandwich_norm": False, "use_attention_gate": False},
    "one query head a key": {"num_key_value_heads": 4},
    "four query heads a key": {"num_key_value_heads": 1},
    "window of one": {"sliding_window": 1},
    "window longer than the prompt": {"sliding_window": 100},
    "window as long as the prompt": {"sliding_window": N_TOKENS},
    "all sliding but one": {"layer_types": [SLIDING, SLIDING, FULL, SLIDING, SLIDING, "conv"]},
    "no sliding layer": {"layer_types": ["conv", FULL, "conv", FULL, "conv", "conv"]},
    "no convolution": {"layer_types": [FULL, SLIDING, FULL, SLIDING, FULL, SLIDING]},
    "heads as wide as the model": {"head_dim": 32},
    "narrow convolution": {"conv_L_cache": 3},
    "untied": {"tie_word_embeddings": False},
}


def prompt(seed: int) -> list[int]:
    """Token ids of a prompt that begins with BOS."""
    return [1, *np.random.default_rng(seed).integers(14, 512, N_TOKENS - 1).tolist()]
