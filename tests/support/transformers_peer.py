"""The reference implementation: transformers in float32 on one thread."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def logits_of(folder: Path, prompt: Sequence[int]) -> np.ndarray:
    """Logits [n_tokens, V] of one prompt, weights widened to float32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(1)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        return model(torch.tensor([list(prompt)])).logits[0].numpy()
