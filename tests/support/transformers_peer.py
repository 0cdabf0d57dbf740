"""The reference implementation: transformers in float32 on one thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np


def logits_of(folder: Path, prompt: Sequence[int], **config: Any) -> np.ndarray:
    """Logits [n_tokens, V] of one prompt, weights widened to float32; fields of the config may be replaced."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    found = AutoConfig.from_pretrained(folder, **config)
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=found, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0].numpy()
