"""What an MLX folder holds, of ours, of mlx_lm or of any other model: told from its config and the names of its arrays."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.dtypes import DType
from ...graph.families import find_family
from ...graph.families.family import Family
from ...graph.json_text import read_object
from ...graph.source.checkpoint import Checkpoint, has_weights
from ...graph.tensor import TensorView
from .parameters import is_packed, module_path

_EXPERTS = ".switch_mlp."
_KERNEL = "conv.conv.weight"
# Arrays beside a packed weight that belong to it.
_PARTS = ("weight", "scales", "biases")


def is_mlx_folder(folder: Path) -> bool:
    """Whether a folder's weights are as MLX stores them: packed, with experts under its names, or channels last."""
    config = folder / CONFIG_FILE
    if not (config.is_file() and has_weights(folder)):
        return False
    said = read_object(config)
    is_said = isinstance(said.get("quantization"), Mapping)
    return is_said or has_mlx_arrays(Checkpoint(folder).tensors, find_family(said.get("model_type")))


def has_mlx_arrays(arrays: Mapping[str, TensorView], family: Family | None) -> bool:
    """Whether arrays are as MLX has them, whatever the config says: merging tools leave its settings over plain floats."""
    renamed = _renamed(family) if family is not None else ()
    return any(
        name.endswith(renamed)
        or _EXPERTS in name
        or (name.endswith(_KERNEL) and array.shape[1:2] > (1,) and array.shape[-1] == 1)
        or (array.dtype is DType.U32 and is_packed(name, arrays))
        for name, array in arrays.items()
    )


def _renamed(family: Family) -> tuple[str, ...]:
    """How names end that mlx-lm alone has."""
    kept = {place.name for places in family.layer_places.values() for place in places}
    return tuple(f".{name}" for name in (family.mlx.tensors.values() if family.mlx else ()) if name not in kept)


def describe_folder(folder: Path) -> dict[str, Any]:
    """Weights and bytes by format, and what the config says of the model.

    Raises: InputError for a folder whose files are damaged or missing.
    """
    config = read_object(folder / CONFIG_FILE)
    quantization = config.get("quantization")
    settings = quantization if isinstance(quantization, Mapping) else {}
    arrays = Checkpoint(folder).tensors
    types: dict[str, list[int]] = {}
    sizes: dict[str, int] = {}
    for name, array in arrays.items():
        weight = _weight(name, arrays)
        sizes[weight] = sizes.get(weight, 0) + array.nbytes
    for weight, n_bytes in sizes.items():
        packed = _format(settings, module_path(weight)) if is_packed(weight, arrays) else None
        types.setdefault(packed or arrays[weight].dtype.value, []).append(n_bytes)
    return {
        "kind": "mlx",
        "size_bytes": sum(file.stat().st_size for file in folder.iterdir() if file.is_file()),
        "tensors": len(sizes),
        "types": [{"type": name, "tensors": len(each), "bytes": sum(each)} for name, each in types.items()],
        "metadata": {key: value for key, value in config.items() if not isinstance(value, Mapping | list)},
    }


def _weight(name: str, arrays: Mapping[str, object]) -> str:
    """The packed weight that an array is a part of; the array itself where it is none's."""
    module, _, part = name.rpartition(".")
    weight = f"{module}.weight"
    return weight if part in _PARTS and weight in arrays and is_packed(weight, arrays) else name


def _format(settings: Mapping[str, Any], module: str) -> str:
    """`affine 8 bit, groups of 64`."""
    own = settings.get(module)
    said = {**settings, **own} if isinstance(own, Mapping) else settings
    return f"{said.get('mode', 'affine')} {said.get('bits')} bit, groups of {said.get('group_size')}"
