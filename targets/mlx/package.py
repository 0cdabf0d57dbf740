"""The files beside the weights: what mlx-lm, mlx-swift and LM Studio read.

Source: mlx-lm `mlx_lm/utils.py`, `save_config`, `create_model_card`; `ModelArgs` of its two LFM2 models.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ...convert.model import assets as names
from ...convert.model.config import CONFIG_FILE, ModelConfig
from ...convert.model.graph import WeightGraph
from ...convert.model.tokenizer import TOKENIZER_FILE

_CARD = """\
---
{front_matter}
---

# {title}

{source}, converted to MLX ({quant}) by lfm-convert.

```
pip install "mlx-lm>=0.32"
mlx_lm.generate --model . --prompt "Hello"
```
"""


def package_files(graph: WeightGraph, *, title: str, quant: str, quantization: Mapping[str, Any]) -> dict[str, bytes]:
    """Config, generation config, tokenizer, chat template, license and model card, by file name."""
    files = {CONFIG_FILE: _json(_config(graph.config, quant, quantization))}
    assets = graph.assets
    if assets.generation_config:
        files[names.GENERATION_CONFIG] = _json(assets.generation_config)
    if graph.tokenizer is not None:
        files[TOKENIZER_FILE] = graph.tokenizer.raw
        # transformers 5 writes a class that swift-transformers and transformers 4 do not know
        files[names.TOKENIZER_CONFIG] = _json({**assets.tokenizer_config, "tokenizer_class": "PreTrainedTokenizerFast"})
    if assets.special_tokens_map:
        files[names.SPECIAL_TOKENS] = _json(assets.special_tokens_map)
    if assets.chat_template is not None:
        files[names.CHAT_TEMPLATE] = assets.chat_template.encode()
    if assets.license is not None:
        files["LICENSE"] = assets.license.encode()
    files["README.md"] = _card(graph, title, quant).encode()
    return files


def _config(config: ModelConfig, quant: str, quantization: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's config, with every field mlx-lm demands under the name it has there."""
    written = {key: value for key, value in config.raw.items() if key not in ("_name_or_path", "vision_config")}
    written.pop("full_attn_idxs", None)
    written |= {
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "num_hidden_layers": config.n_layers,
        "num_attention_heads": config.n_heads,
        "num_key_value_heads": config.n_kv_heads,
        "layer_types": [operator.value for operator in config.operators],
        "max_position_embeddings": config.context_length,
        "norm_eps": config.norm_eps,
        "conv_bias": config.conv_bias,
        "conv_L_cache": config.conv_width,
        "rope_theta": config.rope_theta,
        "rope_parameters": {"rope_theta": config.rope_theta, "rope_type": "default"},
        "intermediate_size": config.ffn_size,
        **(_moe_fields(config) if config.moe else _dense_fields(config)),
    }
    if quant == "bf16":
        written |= {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in written}
    if quantization:
        written |= {"quantization": quantization, "quantization_config": quantization}
    return dict(sorted(written.items()))


def _dense_fields(config: ModelConfig) -> dict[str, Any]:
    """The size as it is: mlx-lm would adjust it again, and knows no multiplier of null."""
    return {
        "block_dim": config.hidden_size,
        "block_ff_dim": config.ffn_size,
        "block_auto_adjust_ff_dim": False,
        "block_multiple_of": config.raw.get("block_multiple_of") or 256,
        "block_ffn_dim_multiplier": config.raw.get("block_ffn_dim_multiplier") or 1.0,
    }


def _moe_fields(config: ModelConfig) -> dict[str, Any]:
    moe = config.moe
    if moe is None:
        raise ValueError("a dense config has no experts")
    return {
        "num_experts": moe.n_experts,
        "num_experts_per_tok": moe.top_k,
        "moe_intermediate_size": moe.ffn_size,
        "num_dense_layers": moe.n_dense_layers,
        "use_expert_bias": moe.use_expert_bias,
        "norm_topk_prob": moe.norm_topk_prob,
        "routed_scaling_factor": moe.routed_scaling_factor,
    }


def _card(graph: WeightGraph, title: str, quant: str) -> str:
    """With the license of the checkpoint's own card."""
    lines = (graph.assets.model_card or "").splitlines()
    own = lines[1 : lines.index("---", 1)] if lines[:1] == ["---"] and "---" in lines[1:] else []
    license_ = [line for line in own if line.startswith("license")]
    fields = ["library_name: mlx", "pipeline_tag: text-generation", *license_, "tags:", "- mlx"]
    return _CARD.format(front_matter="\n".join(fields), title=title, source=graph.name, quant=quant)


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=4, ensure_ascii=False) + "\n").encode()
