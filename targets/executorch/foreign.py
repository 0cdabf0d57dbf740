"""Regions lowered to Core ML or Vulkan, each with weights of its own: their blobs cannot be reused as XNNPACK's can.

Experts and their router stay with XNNPACK: hundreds of compiled models would be too many, and float16 would choose
other experts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...quantize.encoding import get_encoding
from ...quantize.encodings.et_int import Integers
from .constants import Constants, Matrix
from .regions import EXPERT, ROUTERS, RegionName
from .stand_ins import integer_tensor
from .stored import Piece
from .templates import Delegate, Templates, fixed_shapes, lower_region, rounded_to_int8, unchanged

_ON_CPU = {EXPERT, *ROUTERS.values()}


class ForeignRegions:
    """Lowers regions as they are met, as `Templates` does; `rest` takes those that stay on the CPU."""

    def __init__(self, backend: str, constants: Constants, *, longest: int, rest: Templates) -> None:
        self._partitioner, self._quantize = _BACKENDS[backend]
        self._constants, self._longest, self._rest = constants, longest, rest

    def delegate(self, text: str, inputs: Sequence[Tensor]) -> Delegate:
        """The delegate of one region, for inputs of these (fake) shapes."""
        name = RegionName.parse(text)
        if name.kind in _ON_CPU:
            return self._rest.delegate(text, inputs)
        matrices = self._constants.matrices(name)
        is_float = all(matrix.encoding == "F32" for matrix in matrices)
        return lower_region(
            name.kind,
            fixed_shapes(inputs),
            [_tensor(matrix) for matrix in matrices],
            quantize=unchanged if is_float else self._quantize,
            longest=self._longest,
            partitioner=self._partitioner(),
        )


def _tensor(matrix: Matrix) -> Tensor:
    """The weights as the delegates' partitioners know them."""
    parts = [_read(piece, matrix.shape[0]) for piece in matrix.pieces]
    encoding = get_encoding(matrix.encoding)
    if not isinstance(encoding, Integers):
        return torch.from_numpy(encoding.decode(*parts))
    codes, scales = encoding.integers(*parts)
    return integer_tensor(torch.from_numpy(codes), torch.from_numpy(scales), n_bits=encoding.n_bits)


def _read(piece: Piece, n_rows: int) -> NDArray[Any]:
    count = piece.nbytes // piece.dtype.itemsize
    return np.fromfile(piece.path, piece.dtype, count, offset=piece.offset).reshape(n_rows, -1)


def _core_ml() -> Any:
    """Float16 with weights as they are stored. Blocks of 4-bit weights need iOS 18."""
    import coremltools
    from executorch.backends.apple.coreml.compiler import CoreMLBackend
    from executorch.backends.apple.coreml.partition import CoreMLPartitioner

    specs = CoreMLBackend.generate_compile_specs(
        minimum_deployment_target=coremltools.target.iOS18,
        compute_precision=coremltools.precision.FLOAT16,
        compute_unit=coremltools.ComputeUnit.ALL,
        model_type=CoreMLBackend.MODEL_TYPE.MODEL,
    )
    return CoreMLPartitioner(compile_specs=specs, take_over_mutable_buffer=False)


def _vulkan() -> Any:
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner

    return VulkanPartitioner({"require_dynamic_shapes": True})


# A partitioner, and what is done to the input of integer weights: Core ML has no activations in int8 by row.
_BACKENDS: dict[str, tuple[Callable[[], Any], Callable[[Tensor], Tensor]]] = {
    "coreml": (_core_ml, unchanged),
    "vulkan": (_vulkan, rounded_to_int8),
}
