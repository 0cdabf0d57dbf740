"""Writes matrices that have a scale for the whole of them: each is read through before its first row is encoded.

Those that servers run as one product share the scale, an expert's with those of the same expert.
Source: llm-compressor `observers/base.py`, `get_global_scale`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np

from ...graph.roles import Address
from ...graph.tensor import TensorView, WindowTensor
from ...quantize.encoding import matrix_height
from ...quantize.encodings.ct_fp4 import NvFp4
from ...quantize.policy import product_of
from ..plans import Placement, TensorPlan
from ..stream import DEFAULT_RANGE_BYTES, Execution, write_tensors

# Where the scale of each matrix of a tensor goes.
Places = Mapping[Address, Sequence[Placement]]


def write_with_global_scales(tensors: Sequence[TensorPlan], places: Places, folder: Path, run: Execution) -> None:
    """Writes tensors into files that are there, and the scales of their matrices, which it finds."""
    scaled = [tensor for tensor in tensors if isinstance(tensor.encoding, NvFp4)]
    with run.profile.stage("scales"), ThreadPoolExecutor(max(1, run.jobs)) as pool:
        sizes = dict(zip(map(_address, scaled), pool.map(_sizes, scaled), strict=True))
    matrices = [tensor for tensor in tensors if tensor not in scaled]
    for tensor in scaled:
        encodings = [_encoding(tensor).of(_encoding(tensor).global_scale_of(s)) for s in _shared(tensor, sizes)]
        for encoding, place in zip(encodings, places[_address(tensor)], strict=True):
            with (folder / place.path).open("r+b") as file:
                file.seek(place.offset)
                file.write(np.float32(encoding.global_scale).tobytes())
        matrices += _matrices(tensor, encodings)
    write_tensors(matrices, folder, run)


def _address(tensor: TensorPlan) -> Address:
    if tensor.role is None:
        raise ValueError(f"'{tensor.name}' has no role")
    return tensor.role, tensor.layer


def _encoding(tensor: TensorPlan) -> NvFp4:
    if not isinstance(tensor.encoding, NvFp4):
        raise ValueError(f"'{tensor.name}' has no scale for the whole of it")
    return tensor.encoding


def _sizes(tensor: TensorPlan) -> list[float]:
    """The largest magnitude of each matrix."""
    height = matrix_height(tensor.view.shape)
    return [_size(tensor.view, first, first + height) for first in range(0, tensor.view.n_rows, height)]


def _size(view: TensorView, start: int, stop: int) -> float:
    step = max(1, DEFAULT_RANGE_BYTES // (4 * view.n_cols))
    pieces = (view.rows(low, min(low + step, stop)) for low in range(start, stop, step))
    return max(float(max(piece.max(), -piece.min())) for piece in pieces)


def _shared(tensor: TensorPlan, sizes: Mapping[Address, list[float]]) -> list[float]:
    """The largest magnitude of each matrix and of those that it is run with."""
    role, layer = _address(tensor)
    roles = product_of(role)
    together = [sizes[other, layer] for other in roles if (other, layer) in sizes]
    return [max(each) for each in zip(*together, strict=True)]


def _matrices(tensor: TensorPlan, encodings: Sequence[NvFp4]) -> Iterator[TensorPlan]:
    """A tensor as one for each of its matrices, whose encodings know the scale."""
    shape = tensor.view.shape[-2:]
    for i, encoding in enumerate(encodings):
        first = i * shape[0]
        placements = tuple(
            Placement(place.path, place.offset + part.offset(first, shape[0]))
            for part, place in zip(encoding.parts(shape[-1]), tensor.placements, strict=True)
        )
        view = WindowTensor(tensor.view.name, tensor.view, first, shape)
        yield replace(tensor, shape=shape, encoding=encoding, view=view, placements=placements)
