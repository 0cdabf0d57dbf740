"""Trains one of the bundled models on a CPU core and writes it as a checkpoint folder.

    python -m lfm_convert.convert.bundled.making.train moe --out convert/bundled/moe --steps 2000

Needs torch, transformers and tokenizers; about half a second a step.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from random import Random

import torch
from tokenizers import Tokenizer
from transformers import PreTrainedModel

from . import checkpoint, corpus, measure, rows, tokenizer

N_ROWS = 8
PEAK_RATE = 2e-3
WARM_UP_STEPS = 100
BIAS_RATE = 1e-3
# One dialogue in this many trains the tokenizer; with all of them its merges would be whole questions.
_TOKENIZER_EVERY = 3


def main(arguments: list[str] | None = None) -> None:
    """Train, write, and measure what was written."""
    options = _options(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    train_texts, held_out_texts = corpus.build(seed=options.seed)
    bpe = _train_tokenizer(train_texts)
    held_out = rows.encode(held_out_texts, bpe)
    model = checkpoint.create(options.name)
    sampler = rows.Sampler(rows.encode(train_texts, bpe), Random(options.seed))
    fit(model, sampler, held_out, steps=options.steps)

    options.out.mkdir(parents=True, exist_ok=True)
    checkpoint.write(model, options.out, name=options.name)
    tokenizer.write(bpe, options.out)
    facts = _facts(options.out, bpe, held_out)
    facts |= {"steps": options.steps, "seed": options.seed, "n_tokens": options.steps * N_ROWS * rows.ROW_LENGTH}
    checkpoint.write_card(options.out, name=options.name, facts=facts)
    checkpoint.publish_modes(options.out)
    print(facts)


def fit(model: PreTrainedModel, sampler: rows.Sampler, held_out: rows.Documents, *, steps: int) -> None:
    """Train `model` in place, with AdamW under a warm-up and a cosine."""
    optimizer = torch.optim.AdamW(_groups(model), lr=PEAK_RATE, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate_factor(step, steps=steps))
    start, running = time.monotonic(), 0.0
    for step in range(steps):
        batch = sampler.batch(N_ROWS)
        with measure.counted_loads(model) as loads:
            loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        balance(model, loads, rate=BIAS_RATE * rate_factor(step, steps=steps))
        schedule.step()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0 or step + 1 == steps:
            losses = measure.held_out_loss(model, held_out, max_rows=32)
            shown = " ".join(f"{kind} {value:.3f}" for kind, value in losses.items())
            print(
                f"{step + 1}/{steps} {time.monotonic() - start:.0f}s train {running:.3f} held-out {shown}", flush=True
            )


def rate_factor(step: int, *, steps: int) -> float:
    """Return the share of the peak rate at `step`: a linear warm-up, then a cosine down to a twentieth."""
    warm_up = min(WARM_UP_STEPS, steps)
    if step < warm_up:
        return (step + 1) / warm_up
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, steps - warm_up)))


@torch.no_grad()
def balance(model: PreTrainedModel, loads: list[torch.Tensor], *, rate: float) -> None:
    """Move each `expert_bias` one step of `rate` towards even `loads` (`[n_experts]` tokens, one a sparse layer).

    The bias takes part in choosing experts and not in weighing them, so no gradient reaches it; the sign of the
    load error stands in for one.  Its mean changes no choice and is kept at zero.
    Source: auxiliary-loss-free load balancing, arXiv 2408.15664.
    """
    for block, load in zip(measure.sparse_blocks(model), loads, strict=True):
        block.expert_bias += rate * torch.sign(load.mean() - load)
        block.expert_bias -= block.expert_bias.mean()


def _groups(model: PreTrainedModel) -> list[dict[str, object]]:
    """Split the parameters: matrices decay, norm gains and convolution taps do not."""
    decayed = [p for name, p in model.named_parameters() if p.ndim > 1 and "conv.conv" not in name]
    kept = [p for name, p in model.named_parameters() if p.ndim == 1 or "conv.conv" in name]
    return [{"params": decayed, "weight_decay": 0.1}, {"params": kept, "weight_decay": 0.0}]


def _train_tokenizer(texts: corpus.Texts) -> Tokenizer:
    chats = [tokenizer.render(each.messages, tools=each.tools) for each in texts.dialogues[::_TOKENIZER_EVERY]]
    return tokenizer.train([*chats, *texts.prose, *texts.code])


def _facts(folder: Path, bpe: Tokenizer, held_out: rows.Documents) -> dict[str, object]:
    """Measure the written model for its card."""
    model = checkpoint.load(folder)
    with measure.counted_loads(model) as loads:
        losses = measure.held_out_loss(model, held_out)
    return {
        **losses,
        "right": measure.replies_right(model, bpe, held_out),
        "n_parameters": sum(parameter.numel() for parameter in model.parameters()),
        "shares": [(load / load.sum()).tolist() for load in loads],
        "biases": [block.expert_bias.tolist() for block in measure.sparse_blocks(model)],
        "full_rotation": _full_rotation(folder, model, held_out) if model.config.model_type == "lfm3" else None,
    }


def _full_rotation(folder: Path, model: PreTrainedModel, held_out: rows.Documents) -> dict[str, dict[str, float]]:
    """Measure LFM3 with every pair of the full attention layers turned, and how far that is from `model`."""
    other = checkpoint.load(folder, full_rotation=True)
    return {"loss": measure.held_out_loss(other, held_out), "divergence": measure.divergence(model, other, held_out)}


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("name", choices=sorted(checkpoint.ARCHITECTURES), help="which of the models")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint, made where missing")
    parser.add_argument("--steps", type=int, default=2000, help=f"optimizer steps of {N_ROWS} rows")
    parser.add_argument("--seed", type=int, default=0, help="of the corpus, the weights and the order of the rows")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
