"""Where the readers of an ONNX folder end a text.

Source: onnxruntime-genai 0.18 `src/config.cpp`; Transformers.js 4.3 `models/modeling_utils.js`, which like
transformers asks config.json only for what generation_config.json does not say.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.json_text import read_object
from ...graph.source.assets import GENERATION_CONFIG
from ...graph.source.stops import as_ids
from .genai import GENAI_CONFIG


def folder_stops(folder: Path) -> dict[str, tuple[int, ...]]:
    """The ids of each reader whose file is there, by the file. Raises InputError for one that is no JSON object."""
    found = {}
    genai = _object(folder / GENAI_CONFIG)
    if genai is not None:
        model = genai.get("model")
        found[GENAI_CONFIG] = as_ids(model.get("eos_token_id") if isinstance(model, dict) else None)
    generation, config = _object(folder / GENERATION_CONFIG), _object(folder / CONFIG_FILE)
    if generation is not None and generation.get("eos_token_id") is not None:
        found[GENERATION_CONFIG] = as_ids(generation["eos_token_id"])
    elif config is not None:
        found[CONFIG_FILE] = as_ids(config.get("eos_token_id"))
    return found


def _object(path: Path) -> dict[str, Any] | None:
    """A file of JSON; None if it is not there."""
    return read_object(path) if path.exists() else None
