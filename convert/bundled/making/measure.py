"""Measures a bundled model on the held-out split: loss by kind, replies word for word, and how experts are used."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from .rows import MIXTURE, Documents, in_order
from .tokenizer import IM_END, PAD

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel

_BATCH = 16


@torch.no_grad()
def held_out_loss(model: PreTrainedModel, documents: Documents, *, max_rows: int | None = None) -> dict[str, float]:
    """Return the mean loss in nats per token for each kind, and for their `mixture`."""
    return _by_kind(lambda rows: model(input_ids=rows, labels=rows).loss.item(), documents, max_rows=max_rows)


@torch.no_grad()
def divergence(model: PreTrainedModel, other: PreTrainedModel, documents: Documents) -> dict[str, float]:
    """Return the mean Kullback-Leibler divergence of `other` from `model` in nats per token, as `held_out_loss`."""

    def of(rows: torch.Tensor) -> float:
        theirs, ours = (each(input_ids=rows).logits.log_softmax(-1) for each in (other, model))
        return nn.functional.kl_div(theirs, ours, log_target=True, reduction="none").sum(-1).mean().item()

    return _by_kind(of, documents)


def _by_kind(
    mean: Callable[[torch.Tensor], float], documents: Documents, *, max_rows: int | None = None
) -> dict[str, float]:
    """Return what `mean` gives over all rows of each kind, a batch at a time, and over their `mixture`."""
    means = {}
    for kind in MIXTURE:
        rows = in_order(documents, kind)[:max_rows]
        batches = [rows[start : start + _BATCH] for start in range(0, len(rows), _BATCH)]
        means[kind] = sum(mean(batch) * len(batch) for batch in batches) / len(rows)
    means["mixture"] = sum(share * means[kind] for kind, share in MIXTURE.items())
    return means


@torch.no_grad()
def replies_right(model: PreTrainedModel, tokenizer: Tokenizer, documents: Documents) -> float:
    """Return the share of held-out assistant turns that greedy decoding gives exactly, with their end token.

    No text is generated: greedy decoding follows the true reply as long as each argmax along it is right.
    """
    header = tokenizer.encode("<|im_start|>assistant\n", add_special_tokens=False).ids
    n_right = n_turns = 0
    chats = sorted(documents["dialogues"], key=len)  # equal lengths side by side need little padding
    for start in range(0, len(chats), _BATCH):
        batch = chats[start : start + _BATCH]
        width = len(batch[-1])
        ids = torch.tensor([chat + [PAD] * (width - len(chat)) for chat in batch])
        guesses = model(input_ids=ids).logits.argmax(-1)
        for chat, guess in zip(batch, guesses.tolist(), strict=True):
            for first, last in _replies(chat, header):
                n_turns += 1
                n_right += guess[first - 1 : last - 1] == chat[first:last]
    return n_right / n_turns


def _replies(chat: list[int], header: list[int]) -> Iterator[tuple[int, int]]:
    """Yield (first, last) of each assistant turn: from behind its header to behind its end token."""
    for at in range(len(chat) - len(header)):
        if chat[at : at + len(header)] == header:
            first = at + len(header)
            yield first, chat.index(IM_END, first) + 1


@contextmanager
def counted_loads(model: PreTrainedModel) -> Iterator[list[torch.Tensor]]:
    """Count, while open, how many tokens each router of `model` sends to each expert: one `[n_experts]` a layer."""
    routers = [block.gate for block in sparse_blocks(model)]
    loads = [torch.zeros(router.num_experts) for router in routers]

    def count(load: torch.Tensor) -> Any:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            load.add_(torch.bincount(output[2].flatten(), minlength=len(load)))

        return hook

    handles = [router.register_forward_hook(count(load)) for router, load in zip(routers, loads, strict=True)]
    try:
        yield loads
    finally:
        for handle in handles:
            handle.remove()


def sparse_blocks(model: PreTrainedModel) -> list[Any]:
    """Return the mixture-of-experts blocks in layer order; a dense model has none."""
    return [layer.feed_forward for layer in model.model.layers if hasattr(layer.feed_forward, "expert_bias")]
