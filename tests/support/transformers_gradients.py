"""Gradients of transformers in float64, by torch's own differentiation: of every matrix, whatever module holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Peer", "gradients_of"]


@dataclass(frozen=True)
class Peer:
    """What torch says of one loss. Matrices are named by `key_of` their values in float32.

    `squares` [rows] are sums over tokens of the squared gradients by what a matrix gives, `by_weights` [rows, columns]
    are the gradients by the matrix itself, `embedded` [tokens, H] those by the rows of the token table, as the layers
    take them.
    """

    squares: dict[bytes, np.ndarray]
    by_weights: dict[bytes, np.ndarray]
    embedded: np.ndarray


def key_of(matrix: np.ndarray) -> bytes:
    """The bytes of a matrix's first row, which no other matrix of a random model has."""
    return np.ascontiguousarray(matrix[0], np.float32).tobytes()


def gradients_of(
    folder: Path, prompts: Sequence[Sequence[int]], labels: Sequence[Sequence[int]], **config: Any
) -> Peer:
    """Of the sum over all tokens of minus the logarithm of their labels' probabilities."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.set_num_threads(1)
    found = AutoConfig.from_pretrained(folder, **config)
    found._experts_implementation = "eager"
    model = AutoModelForCausalLM.from_pretrained(
        folder, config=found, dtype=torch.float64, attn_implementation="eager"
    ).eval()
    squares: dict[bytes, np.ndarray] = {}
    by_weights: dict[bytes, np.ndarray] = {}
    embedded: list[np.ndarray] = []
    linear = torch.nn.functional.linear

    def watched(x: Any, weight: Any, bias: Any = None) -> Any:
        out = linear(x, weight, bias)
        rows, taken = weight.detach().numpy(), x.detach().reshape(-1, x.shape[-1]).numpy()

        def note(gradient: Any) -> None:
            flat = gradient.reshape(-1, gradient.shape[-1]).numpy()
            # gate and up of an expert are one matrix there
            n = len(rows) // 2 if "gate_up" in names.get(weight.data_ptr(), "") else len(rows)
            for low in range(0, len(rows), n):
                key, own = key_of(rows[low : low + n]), flat[:, low : low + n]
                squares[key] = squares.get(key, 0) + np.square(own).sum(axis=0)
                by_weights[key] = by_weights.get(key, 0) + own.T @ taken

        out.register_hook(note)
        return out

    names = {}
    for name, parameter in model.named_parameters():
        for i in range(len(parameter) if parameter.ndim == 3 else 1):
            names[(parameter[i] if parameter.ndim == 3 else parameter).data_ptr()] = name

    def note_embedded(module: Any, inputs: Any, out: Any) -> None:
        out.register_hook(lambda gradient: embedded.append(gradient[0].numpy()))

    model.get_input_embeddings().register_forward_hook(note_embedded)
    torch.nn.functional.linear = watched
    try:
        for prompt, wanted in zip(prompts, labels, strict=True):
            logits = model(torch.tensor([list(prompt)])).logits[0]
            torch.nn.functional.cross_entropy(logits, torch.tensor(list(wanted)), reduction="sum").backward()
    finally:
        torch.nn.functional.linear = linear
    return Peer(squares, by_weights, np.concatenate(embedded))
