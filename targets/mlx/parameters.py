"""What mlx-lm calls the parameters of a model: as checkpoints do, but for what the family states."""

from __future__ import annotations

from collections.abc import Container

from ...graph.families.family import Family, MlxNames
from ...graph.roles import Role


def mlx_names(family: Family) -> MlxNames:
    """Raises UsageError for a family that MLX has no names for."""
    if family.mlx is None:
        raise family.refuse_for("mlx-lm")
    return family.mlx


def parameter_name(family: Family, role: Role, layer: int | None) -> str:
    """`model.layers.3.self_attn.q_proj.weight`. Raises: as `mlx_names`."""
    renamed = mlx_names(family).tensors
    if layer is not None and role in renamed:
        return family.layer_prefix.format(layer=layer) + renamed[role]
    return family.tensor_name(role, layer)


def module_path(parameter: str) -> str:
    """The module a parameter belongs to: what quantization settings are listed under."""
    return parameter.rpartition(".")[0]


def is_packed(parameter: str, arrays: Container[str]) -> bool:
    """Whether a parameter is one that has scales among the arrays; the bias of a packed module is plain."""
    return parameter.endswith(".weight") and f"{module_path(parameter)}.scales" in arrays
