"""The model type and the names of layers by which clients know a model."""

from __future__ import annotations

from typing import Any

from ...graph.config import ModelConfig


def own_names(config: ModelConfig) -> dict[str, Any]:
    """As the model's own config has them."""
    fields = config.family.hub_fields(config)
    layers = {"layer_types": fields["layer_types"]} if "layer_types" in fields else {}
    return {"model_type": config.model_type, **layers}


def known_names(config: ModelConfig) -> dict[str, Any]:
    """As clients know them: those of another family with the same caches, if they do not know this one."""
    own, names = own_names(config), config.family.onnx
    layers = [names.layer_types.get(name, name) for name in own.get("layer_types", ())]
    return {**own, "model_type": names.model_type or config.model_type, **({"layer_types": layers} if layers else {})}
