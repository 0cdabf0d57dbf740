"""Reads an MLX folder back: every weight of the config, decoded from the files themselves."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...convert.errors import InputError, UsageError
from ...convert.model.checkpoint import Checkpoint
from ...convert.model.config import CONFIG_FILE, load_config
from ...convert.model.lfm2 import Slot, declare
from ...convert.model.safetensors import MappedTensor
from ...convert.model.tensor import TensorView
from ...quantize.encoding import Encoding, get_encoding
from ..encoded import EncodedTensor, StoredPart
from ..target import Address
from .layout import stored_arrays
from .names import module_path, parameter_name


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
    try:
        if scales is None:
            if name not in arrays:
                raise InputError(f"{folder}: array '{name}' is missing")
            return get_encoding(arrays[name].dtype.value)
        settings = quantization.get(module, quantization)
        mode = settings.get("mode", "affine")
        if mode != "affine":
            return get_encoding(f"{mode}_bf16")  # the type of the source decides codes, not what they mean
        return get_encoding(f"affine{settings['bits']}_g{settings['group_size']}_{scales.dtype.value.lower()}")
    except (UsageError, AttributeError, KeyError) as error:
        raise InputError(f"{folder}: the format of '{module}' is not known: {error}") from None


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
