"""Reads an MLX folder back: every weight of the config, decoded from the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...convert.errors import InputError, UsageError
from ...convert.model.checkpoint import Checkpoint
from ...convert.model.config import CONFIG_FILE, load_config
from ...convert.model.dtypes import WEIGHT_DTYPES
from ...convert.model.lfm2 import Slot, declare
from ...convert.model.safetensors import MappedTensor
from ...convert.model.tensor import TensorView
from ...quantize.encoding import Encoding, get_encoding
from ..encoded import EncodedTensor, StoredPart
from ..target import Address
from .layout import stored_arrays
from .names import module_path, parameter_name

_SETTINGS = ("mode", "bits", "group_size")


def read_weights(folder: Path) -> dict[Address, TensorView]:
    """Lazy decoded weights by address.

    Raises: InputError for a missing, foreign or misshapen array, or settings no format of ours has.
    """
    config = load_config(folder)
    quantization = config.raw.get("quantization") or {}
    if not isinstance(quantization, Mapping):
        raise InputError(f"{folder / CONFIG_FILE}: quantization must be an object")
    left = Checkpoint(folder).tensors
    weights: dict[Address, TensorView] = {}
    for slot in declare(config):
        name = parameter_name(slot.role, slot.layer, is_moe=config.moe is not None)
        encoding = _encoding(folder, name, quantization, left)
        parts = _take(folder, slot, name, encoding, left)
        weights[slot.role, slot.layer] = EncodedTensor(name, slot.shape, encoding, parts)
    if left:
        raise InputError(f"{folder}: array '{min(left)}' is not part of the model the config describes")
    return weights


def _encoding(folder: Path, name: str, quantization: Mapping[str, Any], arrays: Mapping[str, MappedTensor]) -> Encoding:
    """What mlx-lm takes a parameter for: quantized where it has scales, as the settings of its module say."""
    module = module_path(name)
    scales = arrays.get(f"{module}.scales")
    if scales is None:
        if name not in arrays:
            raise InputError(f"{folder}: array '{name}' is missing")
        dtype = arrays[name].dtype
        if dtype not in WEIGHT_DTYPES:
            raise InputError(f"{folder}: array '{name}' is {dtype.value} and has no scales beside it: expected a float")
        return get_encoding(dtype.value)
    settings = quantization.get(module, quantization)
    mode, bits, group = (settings.get(key) if isinstance(settings, Mapping) else None for key in _SETTINGS)
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
    folder: Path, slot: Slot, name: str, encoding: Encoding, left: dict[str, MappedTensor]
) -> tuple[StoredPart, ...]:
    """Takes a weight's arrays off the list, if they are what its encoding makes of its shape."""
    parts = []
    for array in stored_arrays(name, slot.role, slot.shape, encoding):
        found = left.pop(array.name, None)
        if found is None:
            raise InputError(f"{folder}: array '{array.name}' is missing")
        if (found.dtype, found.shape) != (array.dtype, array.shape):
            raise InputError(
                f"{found.path}: array '{array.name}' is {found.dtype.value} {list(found.shape)}: "
                f"expected {array.dtype.value} {list(array.shape)}"
            )
        parts.append(StoredPart(found.path, found.offset))
    return tuple(parts)
