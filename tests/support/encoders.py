"""Random models that give vectors, as sentence-transformers and PyLate keep LFM2.5's, and a run of them by torch.

The run is transformers' own Lfm2Model with what Liquid's remote code changes: a mask of padding alone, and a
convolution that is centred.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .checkpoints import dense_config, make_checkpoint
from .configs import Config
from .safetensors_files import float32, read_tensors, write_tensors

POOLING = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False, "include_prompt": True}
DENSE = {"bias": False, "activation_function": "torch.nn.modules.linear.Identity"}
N_PROJECTED = 32
# Class -> how a checkpoint of it is kept: LFM2.5-Embedding, LFM2.5-ColBERT, LFM2-ColBERT.
KINDS = {
    "embedding": ("Lfm2BidirectionalModel", False),
    "colbert": ("Lfm2BidirectionalModel", True),
    "causal colbert": ("Lfm2Model", True),
}


def make_encoder(
    folder: Path, kind: str = "embedding", *, dtype: str = "bfloat16", seed: int = 0, **fields: Any
) -> Path:
    """Writes a checkpoint folder with its modules, and tensors that lack `model.`; returns it."""
    architecture, is_per_token = KINDS[kind]
    config = dense_config(architectures=[architecture], **fields)
    make_checkpoint(folder, config, dtype=dtype, seed=seed)
    weights = folder / "model.safetensors"
    write_tensors(weights, {name.removeprefix("model."): each for name, each in read_tensors(weights).items()})
    _write_modules(folder, config, is_per_token=is_per_token, seed=seed)
    return folder


def _write_modules(folder: Path, config: Config, *, is_per_token: bool, seed: int) -> None:
    kinds = ["models.Transformer", "models.Dense.Dense"] if is_per_token else ["Transformer", "Pooling", "Normalize"]
    paths = ["", *(f"{i}_{kind.rpartition('.')[2]}" for i, kind in enumerate(kinds) if i)]
    library = "pylate" if is_per_token else "sentence_transformers.models"
    modules = [
        {"idx": i, "name": str(i), "path": path, "type": f"{library}.{kind}"}
        for i, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": "document: "}}
    )
    hidden = config["hidden_size"]
    if not is_per_token:
        write_json(folder / "1_Pooling/config.json", {**POOLING, "word_embedding_dimension": hidden})
        return
    write_json(folder / "1_Dense/config.json", {**DENSE, "in_features": hidden, "out_features": N_PROJECTED})
    drawn = np.random.default_rng(seed).standard_normal((N_PROJECTED, hidden)) / np.sqrt(hidden)
    write_tensors(folder / "1_Dense/model.safetensors", {"linear.weight": float32(drawn)})


def write_json(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value, indent=2), encoding="utf-8")


def torch_states(folder: Path, prompts: Sequence[Sequence[int]]) -> list[np.ndarray]:
    """Normed rows [n, H] of each prompt by torch in float32, all in one batch that is padded on the right."""
    import torch
    from transformers import Lfm2Config, Lfm2Model

    torch.set_num_threads(1)
    config = Lfm2Config.from_pretrained(folder)
    model = Lfm2Model.from_pretrained(folder, config=config, dtype=torch.float32, attn_implementation="eager").eval()
    lengths = [len(prompt) for prompt in prompts]
    ids = torch.zeros(len(prompts), max(lengths), dtype=torch.long)
    mask = torch.zeros(len(prompts), max(lengths))
    for row, prompt in enumerate(prompts):
        ids[row, : len(prompt)], mask[row, : len(prompt)] = torch.tensor(list(prompt)), 1
    is_causal = json.loads((folder / "config.json").read_text())["architectures"] == ["Lfm2Model"]
    masks: Any = mask.long()
    if not is_causal:
        masks = {"full_attention": (1 - mask)[:, None, None, :] * torch.finfo(torch.float32).min, "conv": mask.long()}
        for layer in model.layers:
            if not layer.is_attention_layer:
                layer.conv.forward = _centred(layer.conv)
    with torch.no_grad():
        states = model(ids, attention_mask=masks).last_hidden_state.numpy()
    return [rows[:n] for rows, n in zip(states, lengths, strict=True)]


def _centred(conv: Any) -> Any:
    """The forward of a convolution's module whose taps are as many before a token as after it; padding counts as zero."""

    def forward(hidden_states: Any, past_key_values: Any = None, attention_mask: Any = None, **others: Any) -> Any:
        b, c, x = conv.in_proj(hidden_states).transpose(-1, -2).chunk(3, dim=-2)
        first, n = conv.conv_kernel_size // 2, hidden_states.shape[1]
        mixed = conv.conv(b * x * attention_mask[:, None])[..., first : first + n]
        return conv.out_proj((c * mixed).transpose(-1, -2).contiguous())

    return forward
