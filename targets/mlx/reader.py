"""Reads an MLX folder back: every weight of the config, decoded from the files themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.dtypes import WEIGHT_DTYPES
from ...graph.errors import InputError, UsageError
from ...graph.roles import Address
from ...graph.source.checkpoint import Checkpoint
from ...graph.source.config_file import load_config
from ...graph.source.safetensors import StoredTensor
from ...graph.tensor import Shape, TensorView
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.stored import EncodedTensor, StoredPart
from ..kept import Kept, graph_weights, kept_tensors
from ..target import NotJudged
from .layout import stored_arrays
from .parameters import is_packed, mlx_names, module_path, parameter_name

_SETTINGS = ("mode", "bits", "group_size")
# What MLX takes where a mode's settings are not given, as `mlx_lm.convert` leaves the group of mixed recipes.
_DEFAULTS = {"affine": (4, 64), "mxfp4": (4, 32), "nvfp4": (4, 16), "mxfp8": (8, 32)}
_GLOBAL_SCALE = ".global_scale"

ViewOf = Callable[[str, Shape, Encoding, tuple[StoredPart, ...]], TensorView]


def read_weights(folder: Path) -> dict[Address, TensorView]:
    """Lazy decoded weights by address.

    Raises: InputError for a missing, foreign or misshapen array, or settings no format of ours has; NotJudged for
    experts in nvfp4 with a scale for each expert beside those of the groups.
    """
    return weights_of(load_config(folder), Checkpoint(folder), EncodedTensor)


def weights_of(config: ModelConfig, checkpoint: Checkpoint, view_of: ViewOf) -> dict[Address, TensorView]:
    """What `view_of` makes of each weight that a config demands. Raises: as `read_weights`."""
    folder, quantization = checkpoint.folder, config.raw.get("quantization") or {}
    if not isinstance(quantization, Mapping):
        raise InputError(f"{folder / CONFIG_FILE}: quantization must be an object")
    left = dict(checkpoint.tensors)
    found: dict[Kept, TensorView] = {}
    for kept in kept_tensors(config, apart=mlx_names(config.family).tensors):
        name = parameter_name(config.family, kept.role, kept.layer)
        encoding = _encoding(folder, name, quantization, left)
        parts = _take(folder, kept, name, encoding, left)
        found[kept] = view_of(name, kept.shape, encoding, parts)
    scaled = {module_path(name) for name in left if name.endswith(_GLOBAL_SCALE)}
    others = [name for name in left if not name.endswith(_GLOBAL_SCALE)]
    if others:
        raise InputError(f"{folder}: array '{min(others)}' is not part of the model the config describes")
    if scaled:
        plain = {kept: view for kept, view in found.items() if module_path(view.name) not in scaled}
        reason = f"{len(scaled)} arrays have a global scale, which is not decoded here"
        raise NotJudged(reason, graph_weights(config, plain))
    return graph_weights(config, found)


def _encoding(folder: Path, name: str, quantization: Mapping[str, Any], arrays: Mapping[str, StoredTensor]) -> Encoding:
    """What mlx-lm takes a parameter for: quantized where it has scales, as the settings of its module say."""
    module = module_path(name)
    if not is_packed(name, arrays):
        if name not in arrays:
            raise InputError(f"{folder}: array '{name}' is missing")
        dtype = arrays[name].dtype
        if dtype not in WEIGHT_DTYPES:
            raise InputError(f"{folder}: array '{name}' is {dtype.value} and has no scales beside it: expected a float")
        return get_encoding(dtype.value)
    scales = arrays[f"{module}.scales"]
    settings = quantization.get(module, quantization)
    mode, bits, group = (settings.get(key) if isinstance(settings, Mapping) else None for key in _SETTINGS)
    if isinstance(settings, Mapping):
        default_bits, default_group = _DEFAULTS.get(mode or "affine", (None, None))
        bits, group = bits or default_bits, group or default_group
    # where the scales are bytes, the type of the source decided the codes, but not what they mean
    known = f"affine{bits}_g{group}_{scales.dtype.value.lower()}" if mode in (None, "affine") else f"{mode}_bf16"
    try:
        return get_encoding(known)
    except UsageError:
        raise InputError(
            f"{folder}: '{module}' has mode {mode}, {bits} bits, groups of {group} and {scales.dtype.value} scales: "
            "expected a format of MLX"
        ) from None


def _take(
    folder: Path, kept: Kept, name: str, encoding: Encoding, left: dict[str, StoredTensor]
) -> tuple[StoredPart, ...]:
    """Takes a weight's arrays off the list, if they are what its encoding makes of its shape."""
    parts = []
    for array in stored_arrays(name, kept.role, kept.shape, encoding):
        found = left.pop(array.name, None)
        if found is None:
            raise InputError(f"{folder}: array '{array.name}' is missing")
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise InputError(
                f"{found.path}: array '{array.name}' is {found.dtype.value} {list(found.shape)}: "
                f"expected {array.dtype.value} {list(array.shape)}"
            )
        parts.append(StoredPart(found.path, found.offset, found.file))
    return tuple(parts)
