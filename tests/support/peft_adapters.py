"""Adapters that PEFT itself makes, with random values in the place of training, and what PEFT merges them into."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

Tensors = dict[str, torch.Tensor]


def load_model(folder: Path, *, dtype: torch.dtype = torch.bfloat16, untied: bool = False) -> Any:
    """The checkpoint in transformers; `untied` gives the head a copy of the embedding of its own."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    if untied:
        model.config.tie_word_embeddings = False
        head = torch.nn.Parameter(model.get_input_embeddings().weight.detach().clone())
        model.lm_head.weight = head
    return model.eval()


def make_adapter(base: Path, folder: Path, *, seed: int = 0, **settings: Any) -> Path:
    """Saves an adapter of a checkpoint whose every trained tensor is random."""
    from peft import LoraConfig, get_peft_model

    settings = {"r": 4, "lora_alpha": 6, "init_lora_weights": False, **settings}
    torch.manual_seed(seed)
    adapted = get_peft_model(load_model(base), LoraConfig(**settings))
    with torch.no_grad():
        for name, value in adapted.named_parameters():
            if "lora_embedding" in name:  # which PEFT draws far larger than the table
                value *= 0.1
            if value.requires_grad:
                value += 0.05 * torch.randn_like(value) * (1.0 if "magnitude" in name else value.std().nan_to_num(1.0))
    adapted.save_pretrained(folder)
    return folder


def merged(base: Path, folders: Sequence[Path], *, untied: bool = False) -> Tensors:
    """The tensors of `merge_and_unload`, of each adapter in turn, by name."""
    return dict(merged_model(base, folders, untied=untied).state_dict())


def merged_model(base: Path, folders: Sequence[Path], *, untied: bool = False) -> Any:
    from peft import PeftModel

    model = load_model(base, untied=untied)
    for folder in folders:
        model = PeftModel.from_pretrained(model, folder).merge_and_unload()
    return model.eval()
