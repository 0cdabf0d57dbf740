"""The files beside the weights: what mlx-lm, mlx-swift and LM Studio read.

Source: mlx-lm `mlx_lm/utils.py`, `save_config`, `create_model_card`, `load_model` (`model_file`).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.graph import WeightGraph
from ...quantize.policies.mlx import MlxQuant
from ..hub_folder import base_config, common_files, json_bytes, licence_lines
from .parameters import mlx_names
from .ropes import with_one_table

_INDENT = 4  # as mlx_lm writes
_CARD = """\
---
{front_matter}
---

# {title}

{source}, converted to MLX ({quant}) by lfm-convert.

```
pip install "mlx-lm>=0.32"
mlx_lm.generate --model .{flag} --prompt "Hello"
```
{note}"""
# What the card says where mlx-lm has no class for the model: what runs it with one beside the weights, and without.
_TRUSTED = """
mlx-lm 0.32 has no class of its own for {model_type}. It runs the one in `{model_file}`, if the flag says it may.
"""
_UNKNOWN = """
mlx-lm 0.32 has no class for {model_type}: this needs a later one.
"""
# Fields that are true of a checkpoint's own folder only.
_LEFT_OUT = ("_name_or_path", "vision_config", "full_attn_idxs", "model_file")


def model_file(config: ModelConfig) -> dict[str, bytes]:
    """The class that runs a model for which mlx-lm has none, as a file by its name. Nothing is imported: it needs mlx."""
    return {f"{config.model_type}.py": files(__package__).joinpath("model.py").read_bytes()}


def config_fields(config: ModelConfig) -> dict[str, Any]:
    """The fields by which mlx-lm's class knows the model, whatever spelling the checkpoint has."""
    family = config.family
    return with_one_table({**family.hub_fields(config), **mlx_names(family).fields(config)})


def package_files(
    graph: WeightGraph, *, title: str, quant: MlxQuant, quantization: Mapping[str, Any], beside: Mapping[str, bytes]
) -> dict[str, bytes]:
    """Config, generation config, tokenizer, chat template, license and model card, by file name.

    `beside` is the `model_file` that config and card tell of, if there is to be one.
    """
    named = next(iter(beside), None)
    config = json_bytes(_config(graph, quant, quantization, named), indent=_INDENT)
    card = _card(graph, title, quant, named).encode()
    return {CONFIG_FILE: config, **common_files(graph, indent=_INDENT), "README.md": card, **beside}


def _config(
    graph: WeightGraph, quant: MlxQuant, quantization: Mapping[str, Any], model_file: str | None
) -> dict[str, Any]:
    """The checkpoint's config, with every field mlx-lm demands under the name it has there."""
    config = graph.config
    written = {key: value for key, value in base_config(graph).items() if key not in _LEFT_OUT}
    fields = config_fields(config)
    if config.tied:  # as every reader takes it for granted; the checkpoint may say it under an older name
        fields.pop("tie_word_embeddings", None)
    written |= fields
    if quant.matrices is None:
        written |= {key: "bfloat16" for key in ("dtype", "torch_dtype") if key in written}
    if quantization:
        written |= {"quantization": quantization, "quantization_config": quantization}
    if model_file is not None:
        written["model_file"] = model_file
    return dict(sorted(written.items()))


def _card(graph: WeightGraph, title: str, quant: MlxQuant, model_file: str | None) -> str:
    config, licence = graph.config, licence_lines(graph.assets)
    fields = ["library_name: mlx", "pipeline_tag: text-generation", *licence, "tags:", "- mlx"]
    note = "" if mlx_names(config.family).is_released else _UNKNOWN if model_file is None else _TRUSTED
    return _CARD.format(
        front_matter="\n".join(fields),
        title=title,
        source=graph.name,
        quant=quant.name,
        flag="" if model_file is None else " --trust-remote-code",
        note=note.format(model_type=config.model_type, model_file=model_file),
    )
