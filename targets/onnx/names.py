"""The model type and the names of layers by which clients know a model."""

from __future__ import annotations

from typing import Any

from ...graph.config import ModelConfig


def own_names(config: ModelConfig) -> dict[str, Any]:
    """As the model's own config has them."""
    return {"model_type": config.model_type, "layer_types": config.family.hub_fields(config)["layer_types"]}


def known_names(config: ModelConfig) -> dict[str, Any]:
    """As clients know them: those of another family with the same caches, if they do not know this one."""
    own, stand_in = own_names(config), config.family.onnx
    if stand_in is None:
        return own
    layers = [stand_in.layer_types.get(name, name) for name in own["layer_types"]]
    return {"model_type": stand_in.model_type, "layer_types": layers}
