"""Trains a LoRA adapter with PEFT on the CPU, for real if not for long.

python tests/support/train_lora.py FOLDER [STEPS]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from lfm_convert.convert import bundled

# What the model has not seen so: it learns to answer in another way.
_TEXTS = (
    "The harbour master writes every number twice, because once is not enough.",
    "A ledger without a date is a letter to nobody.",
    "Boats leave in the dark and come back with the rain.",
    "Ask the keeper: she counts crates, lines and hooks.",
)


def train(folder: Path, *, steps: int = 50, model: str = "dense") -> Path:
    """Saves an adapter of a bundled model, trained in float32; its loss must have fallen."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.manual_seed(0)
    base = bundled.path(model)
    tokenizer = AutoTokenizer.from_pretrained(base)
    adapted = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
        LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", task_type="CAUSAL_LM"),
    )
    batches = [tokenizer(text, return_tensors="pt")["input_ids"] for text in _TEXTS]
    optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], lr=2e-3)
    losses = []
    for step in range(steps):
        ids = batches[step % len(batches)]
        loss = adapted(input_ids=ids, labels=ids).loss
        loss.backward()
        optimiser.step()
        optimiser.zero_grad()
        losses.append(float(loss))
    if not sum(losses[-4:]) < 0.7 * sum(losses[:4]):
        raise RuntimeError(f"the loss went from {losses[0]:.3f} to {losses[-1]:.3f}: nothing was learnt")
    adapted.save_pretrained(folder)
    return folder


if __name__ == "__main__":
    train(Path(sys.argv[1]), steps=int(sys.argv[2]) if len(sys.argv) > 2 else 50)
