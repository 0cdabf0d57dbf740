"""Reads a folder of compressed-tensors back, of ours or of llm-compressor: every weight of the config, decoded.

What a weight is stored as is told from its arrays, not from the config, so that a config which says otherwise is found out by
whoever runs it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from ...graph.dtypes import WEIGHT_DTYPES, DType
from ...graph.errors import Faults, InputError, UsageError
from ...graph.families.places import EXPERT, without_number
from ...graph.roles import Address
from ...graph.source.checkpoint import Checkpoint
from ...graph.source.config_file import load_config
from ...graph.source.safetensors import StoredTensor
from ...graph.tensor import Shape, StackedTensor, TensorView
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.encodings.ct_base import PACKED, SCALE, ZERO_POINT
from ...quantize.encodings.ct_fp4 import GLOBAL_SCALE, NvFp4
from ...quantize.stored import EncodedTensor, StoredPart
from ..kept import Kept, graph_weights, kept_tensors
from ..target import NotJudged
from .layout import Array, module_path, stored_runs

# Scales of activations, which are no part of weights.
_BESIDE = (".input_scale", ".input_global_scale", ".output_scale", ".k_scale", ".v_scale", ".q_scale")


class _Unknown(Exception):
    """A weight is stored in a way that no encoding here has."""


def read_weights(folder: Path) -> dict[Address, TensorView]:
    """Lazy decoded weights by address.

    Raises: InputError for missing, foreign or misshapen arrays, all together; NotJudged where some are stored in a way that
    is not decoded here, such as three bits or one scale for a whole matrix.
    """
    config = load_config(folder)
    left = dict(Checkpoint(folder).tensors)
    tensors: dict[Kept, TensorView] = {}
    faults, unknown = Faults(), list[str]()
    for kept in kept_tensors(config):
        parameter = config.family.tensor_name(kept.role, kept.layer)
        try:
            tensors[kept] = _read(kept, parameter, left)
        except _Unknown as error:
            unknown.append(str(error))
            _drop(parameter, left)
        except InputError as error:
            faults.add(str(error))
            _drop(parameter, left)
    for name in sorted(left):
        if not name.endswith(_BESIDE):
            faults.add(f"array '{name}' is not part of the model the config describes")
    faults.raise_if_any(str(folder))
    weights = graph_weights(config, tensors)
    if unknown:
        raise NotJudged(f"{len(unknown)} weights are stored as is not decoded here: {unknown[0]}", weights)
    return weights


def _read(kept: Kept, parameter: str, left: dict[str, StoredTensor]) -> TensorView:
    if EXPERT not in parameter:
        return _matrix(kept, parameter, kept.shape, left)
    matrices = [_matrix(kept, parameter.replace(EXPERT, str(e)), kept.shape[1:], left) for e in range(kept.shape[0])]
    return StackedTensor(without_number(parameter), matrices)


def _matrix(kept: Kept, parameter: str, shape: Shape, left: dict[str, StoredTensor]) -> TensorView:
    """One array of floats, or one matrix with its scales, taken off the list if it is what its encoding makes of the shape."""
    encoding = _encoding(parameter, shape, left)
    parts = []
    for run in stored_runs(parameter, kept.role.trait, shape, encoding):
        (array,) = run.arrays
        found = _taken(array, left)
        if not run.is_constant:
            parts.append(StoredPart(found.path, found.offset))
        elif isinstance(encoding, NvFp4):
            encoding = encoding.of(float(found.read()[0]))
        elif found.elements(0, math.prod(found.shape)).tobytes() != array.constant:
            raise InputError(f"array '{array.name}' does not say {list(shape)}")
    return EncodedTensor(parameter, shape, encoding, tuple(parts))


def _taken(array: Array, left: dict[str, StoredTensor]) -> StoredTensor:
    found = left.pop(array.name, None)
    if found is None:
        raise InputError(f"array '{array.name}' is missing")
    if (found.dtype, found.shape) != (array.dtype, array.shape):
        raise InputError(
            f"array '{array.name}' is {found.dtype.value} {list(found.shape)}: expected {array.dtype.value} "
            f"{list(array.shape)}"
        )
    return found


def _drop(parameter: str, left: dict[str, StoredTensor]) -> None:
    """Takes all that belongs to a weight off the list, so that one fault is told once."""
    before, _, after = module_path(parameter).partition(EXPERT)
    for name in [name for name in left if name.startswith(before) and module_path(name).endswith(after)]:
        del left[name]


def _encoding(parameter: str, shape: Shape, arrays: Mapping[str, StoredTensor]) -> Encoding:
    """What a weight is stored as, told from its arrays."""
    module = module_path(parameter)
    packed, scale = arrays.get(f"{module}.{PACKED}"), arrays.get(f"{module}.{SCALE}")
    whole = packed or arrays.get(parameter)
    if whole is None:
        raise InputError(f"array '{parameter}' is missing")
    if packed is None and whole.dtype in WEIGHT_DTYPES:
        return get_encoding(whole.dtype.value)
    if scale is None:
        raise InputError(f"array '{module}.{SCALE}' is missing")
    name = _name(module, shape, whole, scale, arrays)
    try:
        return get_encoding(name)
    except UsageError:
        raise _Unknown(f"'{whole.name}' is {whole.dtype.value} with scales {list(scale.shape)}") from None


def _name(
    module: str, shape: Shape, whole: StoredTensor, scale: StoredTensor, arrays: Mapping[str, StoredTensor]
) -> str:
    """What an encoding with these arrays would be called."""
    n_cols, n_scales, floats = shape[-1], scale.shape[-1] if scale.shape else 0, scale.dtype.value.lower()
    if whole.dtype is DType.I32:
        group, asym = n_cols // max(1, n_scales), "_asym" if f"{module}.{ZERO_POINT}" in arrays else ""
        return f"ct_int{whole.shape[-1] * 32 // n_cols}_g{group}{asym}_{floats}"
    if whole.dtype is DType.U8:
        return "ct_nvfp4_bf16" if f"{module}.{GLOBAL_SCALE}" in arrays else "ct_mxfp4_bf16"
    is_by_row = scale.shape == (shape[0], 1)
    if whole.dtype is DType.I8:
        return f"ct_int8_{floats}" if is_by_row else ""
    if whole.dtype is DType.F8_E4M3:
        square = get_encoding(f"ct_fp8_block_{floats}").parts(n_cols)[1] if len(scale.shape) == 2 else None
        is_by_square = square and scale.shape == (square.n_rows(shape[0]), *square.row_shape) and not is_by_row
        return f"ct_fp8_{floats}" if is_by_row else f"ct_fp8_block_{floats}" if is_by_square else ""
    return ""
