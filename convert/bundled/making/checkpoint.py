"""The architectures of the bundled models, and their checkpoints in the form that each is released in."""

from __future__ import annotations

import json
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from .. import NAMES
from .measure import sparse_blocks
from .tokenizer import BOS, IM_END, PAD, VOCAB_SIZE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "norm_eps": 1e-5,
    "conv_bias": False,
    "tie_word_embeddings": True,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": IM_END,
}
_LFM2: dict[str, Any] = {
    **_COMMON,
    "vocab_size": VOCAB_SIZE,
    "rope_parameters": {"rope_theta": 1000000.0, "rope_type": "default"},
    "conv_L_cache": 3,
}
_MOE: dict[str, Any] = {
    **_LFM2,
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
    **_LFM2,
    "num_hidden_layers": 5,
    "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"],
    "intermediate_size": 512,
    "block_auto_adjust_ff_dim": False,
}
# The head size, the feed-forward size and the rows of the embedding are those given, not what the other fields and
# the tokenizer would make of them.  The order of the layers is LFM3's own, which its config class fills in.
_LFM3: dict[str, Any] = {
    **_COMMON,
    "vocab_size": VOCAB_SIZE + 16,
    "num_hidden_layers": 9,
    "head_dim": 32,
    "intermediate_size": 192,
    "sliding_window": 64,
    "conv_L_cache": 7,
    "rope_parameters": {
        # Not the release's million: rows of ROW_LENGTH tokens are too short for the pairs that stay to matter then.
        "full_attention": {"partial_rotary_factor": 0.5, "rope_theta": 100.0, "rope_type": "proportional"},
        "sliding_attention": {"rope_theta": 10000.0, "rope_type": "default"},
    },
}
# As releases of each generation recommend for sampling: LFM3's leave it to their cards.
_LFM2_GENERATION = {"do_sample": True, "temperature": 0.3, "min_p": 0.15, "repetition_penalty": 1.05}
_LFM3_GENERATION = {"_from_model_config": True, "eos_token_id": [IM_END]}
# Fields that LFM3's release leaves at the defaults of its architecture.
_LEFT_OUT = {"attention_bias", "attention_dropout", "initializer_range", "use_attention_gate", "use_sandwich_norm"}


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """What one of the bundled models is built from; `described` is its card's word for it."""

    model_type: str
    described: str
    config: dict[str, Any]
    generation: dict[str, Any]
    shard_size: str = "2MB"


ARCHITECTURES = {
    "moe": Architecture(
        model_type="lfm2_moe",
        described="A mixture-of-experts model of the LFM2 architecture",
        config=_MOE,
        generation=_LFM2_GENERATION,
    ),
    "dense": Architecture(
        model_type="lfm2",
        described="A dense model of the LFM2 architecture",
        config=_DENSE,
        generation=_LFM2_GENERATION,
    ),
    "lfm3": Architecture(
        model_type="lfm3",
        described="A dense model of the LFM3 architecture",
        config=_LFM3,
        generation=_LFM3_GENERATION,
        shard_size="1GB",
    ),
}


def create(name: str) -> PreTrainedModel:
    """Return the untrained float32 model `name`, one of `ARCHITECTURES`, with weights from torch's global generator."""
    from transformers import AutoConfig, AutoModelForCausalLM

    architecture = ARCHITECTURES[name]
    config = AutoConfig.for_model(architecture.model_type, **architecture.config)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config)  # type: ignore[no-untyped-call]
    return model


def load(folder: Path, *, full_rotation: bool = False) -> PreTrainedModel:
    """Return the model of `folder` in float32: its stored values, computed with without further rounding.

    LFM3's proportional rotation is labelled "default" in `folder`, as in its release, and transformers 5.23 takes
    that for a full one; `full_rotation` leaves it at this other reading.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "lfm3" and not full_rotation:
        config.rope_parameters["full_attention"]["rope_type"] = "proportional"
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    return model


def write(model: PreTrainedModel, folder: Path, *, name: str) -> None:
    """Write `model` into `folder` as bfloat16 with float32 `expert_bias`; `model` itself is rounded by that."""
    from transformers import GenerationConfig

    biases = [block.expert_bias.float().clone() for block in sparse_blocks(model)]
    model.bfloat16()
    # The cast takes the buffers along, while releases keep the selection bias in full precision.
    for block, bias in zip(sparse_blocks(model), biases, strict=True):
        block.expert_bias = bias
    tokens = {"bos_token_id": BOS, "eos_token_id": IM_END, "pad_token_id": PAD}
    generation = tokens | ARCHITECTURES[name].generation
    model.generation_config = GenerationConfig(**generation)  # type: ignore[no-untyped-call]
    model.save_pretrained(folder, max_shard_size=ARCHITECTURES[name].shard_size)
    if model.config.model_type == "lfm3":
        _spell_as_released(folder / "config.json")


def _spell_as_released(path: Path) -> None:
    """Rewrite an LFM3 config as the release spells it: fewer fields, and the proportional rotation as "default"."""
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in _LEFT_OUT}
    config["rope_parameters"]["full_attention"]["rope_type"] = "default"
    path.write_text(json.dumps(config, indent=2) + "\n")


def write_card(folder: Path, *, name: str, facts: dict[str, Any]) -> None:
    """Write README.md, the model card, from the measured `facts` (keys as in `_CARD`)."""
    weights_bytes = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    text = _CARD.format(
        title=NAMES[name],
        tag=ARCHITECTURES[name].model_type,
        described=ARCHITECTURES[name].described,
        name=name,
        python=platform.python_version(),
        weights_bytes=weights_bytes,
        experts=_experts(facts["shares"], facts["biases"]),
        rotation=_rotation(facts["full_rotation"]),
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


def _rotation(measured: dict[str, dict[str, float]] | None) -> str:
    """Return the card's section on the rope, empty where its label can be read in one way only."""
    return _ROTATION.format(**measured) if measured else ""


_ROTATION = """
## Rotary positions

As in the LFM3 release, `config.json` labels the rotation of the full attention layers "default" beside a
`partial_rotary_factor` of 0.5, and means "proportional": the first half of the pairs turns, the second half stays.
transformers 5.23 takes the label at its word and turns every pair. The losses hardly show it, the distributions do:

| every pair turned | mixture | dialogues | prose | code |
|---|---|---|---|---|
| loss | {loss[mixture]:.3f} | {loss[dialogues]:.3f} | {loss[prose]:.3f} | {loss[code]:.3f} |
| mean divergence from the right reading | {divergence[mixture]:.4f} | {divergence[dialogues]:.4f} | \
{divergence[prose]:.4f} | {divergence[code]:.4f} |

The base of that rotation is 100 where the release has 1,000,000: over the 256 tokens of a training row the pairs that
stay would turn by a quarter of a radian at most with the release's, and no text of that length could tell the readings
apart.
"""

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

{described} that is small enough to travel in a wheel ({n_parameters:,} parameters,
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
{experts}{rotation}"""
