"""The two architectures of the bundled models, and their checkpoints in the form that LFM2 is released in."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .measure import sparse_blocks
from .tokenizer import BOS, IM_END, PAD, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TITLES = {"moe": "LFM2-Tiny-MoE", "dense": "LFM2-Tiny"}

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "conv_L_cache": 3,
    "conv_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": IM_END,
}
_MOE: dict[str, Any] = {
    "num_hidden_layers": 4,
    "layer_types": ["conv", "full_attention", "conv", "full_attention"],
    "num_dense_layers": 2,
    "intermediate_size": 256,
    "moe_intermediate_size": 256,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "use_expert_bias": True,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
}
_DENSE: dict[str, Any] = {
    "num_hidden_layers": 5,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    "intermediate_size": 512,
    "block_auto_adjust_ff_dim": False,
}
# As LFM2 releases recommend for sampling.
_GENERATION = {"do_sample": True, "temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}


def create(name: str) -> PreTrainedModel:
    """Return the untrained float32 model `name` ("moe" or "dense"), with weights from torch's global generator."""
    from transformers import Lfm2Config, Lfm2ForCausalLM, Lfm2MoeConfig, Lfm2MoeForCausalLM

    if name == "moe":
        return Lfm2MoeForCausalLM(Lfm2MoeConfig(**_COMMON, **_MOE))
    return Lfm2ForCausalLM(Lfm2Config(**_COMMON, **_DENSE))


def load(folder: Path) -> PreTrainedModel:
    """Return the model of `folder` in float32: its stored values, computed with without further rounding."""
    from transformers import AutoModelForCausalLM

    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model


def write(model: PreTrainedModel, folder: Path) -> None:
    """Write `model` into `folder` as bfloat16 shards with float32 `expert_bias`; `model` itself is rounded by that."""
    from transformers import GenerationConfig

    biases = [block.expert_bias.float().clone() for block in sparse_blocks(model)]
    model.bfloat16()
    # The cast takes the buffers along, while releases keep the selection bias in full precision.
    for block, bias in zip(sparse_blocks(model), biases, strict=True):
        block.expert_bias = bias
    tokens = {"bos_token_id": BOS, "eos_token_id": IM_END, "pad_token_id": PAD}
    model.generation_config = GenerationConfig(**_GENERATION, **tokens)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size="2MB")


def write_card(folder: Path, *, name: str, facts: dict[str, Any]) -> None:
    """Write README.md, the model card, from the measured `facts` (keys as in `_CARD`)."""
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    text = _CARD.format(
        title=TITLES[name],
        tag="lfm2_moe" if name == "moe" else "lfm2",
        kind="mixture-of-experts" if name == "moe" else "dense",
        name=name,
        python=platform.python_version(),
        weights_bytes=weights_bytes,
        experts=_experts(facts["shares"], facts["biases"]),
        **facts,
    )
    (folder / "README.md").write_text(text, encoding="utf-8")


def publish_modes(folder: Path) -> None:
    """Make every file of `folder` readable by all: safetensors writes files for their owner alone."""
    for path in folder.iterdir():
        path.chmod(0o644)


def _experts(shares: list[list[float]], biases: list[list[float]]) -> str:
    """Return the card's section on experts, empty for a dense model."""
    if not shares:
        return ""
    lines = ["", "Share of the routed tokens and `expert_bias`, by expert, on the held-out text:", ""]
    for layer, (share, bias) in enumerate(zip(shares, biases, strict=True)):
        both = ", ".join(f"{100 * part:.0f}% ({value:+.3f})" for part, value in zip(share, bias, strict=True))
        lines.append(f"- sparse layer {layer}: {both}")
    return "\n".join(lines) + "\n"


_CARD = """\
---
license: apache-2.0
model_name: {title}
pipeline_tag: text-generation
library_name: transformers
language: [en, ar, zh, fr, de, ja, ko, es]
tags: [{tag}, test-fixture, tiny]
---

# {title}

A {kind} model of the LFM2 architecture that is small enough to travel in a wheel ({n_parameters:,} parameters,
{weights_bytes:,} bytes of weights), trained from scratch for `lfm-convert`. It is for tests and demonstrations of
conversion: it keeps the form of a reply and ends it, but what the reply says is wrong more often than right.
It is no model of Liquid AI, and holds none of their weights.

## Training text

| text | source | licence |
|---|---|---|
| dialogues in eight languages, tool calls | templates written for this project | Apache-2.0 |
| English prose | `pydoc_data.topics` of CPython {python} | PSF-2.0 |
| code | standard library modules of CPython {python}, named in `corpus.py` | PSF-2.0 |

{n_tokens:,} tokens were seen in {steps} steps, seed {seed}:
`python -m lfm_convert.convert.bundled.making.train {name} --out DIR --steps {steps} --seed {seed}`

## Measured on held-out text

The stored bfloat16 weights, computed in float32; nats per token (vocabulary of 1024).

| mixture | dialogues | prose | code |
|---|---|---|---|
| {mixture:.3f} | {dialogues:.3f} | {prose:.3f} | {code:.3f} |

The mixture weighs dialogues 0.6, prose 0.2 and code 0.2. Much of the loss on dialogues is the choice of the question;
{right:.1%} of the held-out assistant turns come out of greedy decoding word for word, with their end token.
{experts}"""
