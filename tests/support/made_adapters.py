"""LoRA adapters in PEFT's form, written without PEFT or torch, for tests that damage them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from support.safetensors_files import float32, write_tensors

PREFIX = "base_model.model."
W1 = "model.layers.0.feed_forward.w1"
Q = "model.layers.1.self_attn.q_proj"
# Of the tiny dense model: rows and columns of each adapted module.
SHAPES = {W1: (256, 128), Q: (128, 128)}
RANK, ALPHA = 4, 6


def factors(module: str, seed: int = 0, *, rank: int = RANK) -> tuple[np.ndarray, np.ndarray]:
    """A and B of a module."""
    rng = np.random.default_rng([seed, len(module)])
    n_out, n_in = SHAPES[module]
    a, b = rng.normal(0, 0.1, (rank, n_in)), rng.normal(0, 0.1, (n_out, rank))
    return a.astype(np.float32), b.astype(np.float32)


def write_adapter(folder: Path, *, seed: int = 0, rank: int = RANK, **settings: Any) -> Path:
    """An adapter of two modules; `settings` go into its config."""
    folder.mkdir(parents=True)
    tensors = {}
    for module in SHAPES:
        a, b = factors(module, seed, rank=rank)
        tensors[f"{PREFIX}{module}.lora_A.weight"], tensors[f"{PREFIX}{module}.lora_B.weight"] = float32(a), float32(b)
    write_tensors(folder / "adapter_model.safetensors", tensors)
    config = {
        "peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "base_model_name_or_path": None,
        "target_modules": [W1, Q], **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
