"""Stand-ins for the matrices of a region while XNNPACK lowers it: zeros that the system never backs with memory.

XNNPACK names its constants by the hash of their bytes, and those names lead to ranges of the scratch file afterwards.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from executorch.backends.xnnpack.operators.node_visitor import NodeVisitor
from executorch.backends.xnnpack.serialization.xnnpack_graph_schema import ConstantDataOffset, XNNGraph
from executorch.backends.xnnpack.utils.utils import get_param_tensor, is_param_node
from executorch.backends.xnnpack.utils.xnnpack_constants import UINT64_MAX
from executorch.exir._serialize._named_data_store import NamedDataStoreOutput
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node
from torch.nn import Parameter
from torchao.quantization.quantize_.workflows.intx.intx_unpacked_to_int8_tensor import IntxUnpackedToInt8Tensor

from ...graph.dtypes import to_bfloat16
from .constants import Matrix
from .stored import Piece


class StandIns:
    """Makes stand-ins, and knows the names that XNNPACK gave them.

    Values are not packed but named here: a copy and what packing holds would be three bytes for each of them. Scales are
    packed, and found again among XNNPACK's constants by their first element and their size.
    """

    def __init__(self) -> None:
        self._addresses: set[int] = set()
        self._values: dict[int, tuple[int, str]] = {}
        self._marks: list[str | tuple[int, bytes]] = []

    def matrix(self, matrix: Matrix) -> Tensor:
        """A stand-in of the type whose `functional.linear` becomes XNNPACK's."""
        values, *scales = matrix.pieces
        codes = self._value(values, matrix.shape)
        if not scales:
            return codes
        n_rows = matrix.shape[0]
        n_scales = scales[0].nbytes // scales[0].dtype.itemsize // n_rows
        n_bits = 4 if values.dtype == np.uint8 else 8
        return integer_tensor(codes, self._scale(scales[0], (n_rows, n_scales)), n_bits=n_bits)

    def keys(self, store: NamedDataStoreOutput) -> tuple[str, ...]:
        """The name of each stand-in, in the order they were made."""
        data = {key: store.buffers[entry.buffer_index] for key, entry in store.pte_data.items()}
        return tuple(
            mark
            if isinstance(mark, str)
            else next(key for key, found in data.items() if len(found) == mark[0] and found.startswith(mark[1]))
            for mark in self._marks
        )

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Two changes while executorch lowers a region: values are named and not packed, and no stand-in is copied, of
        which copies of a program would otherwise have one each.
        """
        pack, copy = NodeVisitor.get_serialized_buffer_index, Parameter.__deepcopy__
        NodeVisitor.get_serialized_buffer_index = lambda *arguments: self._pack(pack, *arguments)
        Parameter.__deepcopy__ = lambda *arguments: self._copy(copy, *arguments)  # type: ignore[method-assign]
        try:
            yield
        finally:
            NodeVisitor.get_serialized_buffer_index = pack
            Parameter.__deepcopy__ = copy  # type: ignore[method-assign]

    def _pack(
        self, pack: Callable[..., int], visitor: NodeVisitor, tensor: Node, graph: XNNGraph, *arguments: Any
    ) -> int:
        quantization, program = arguments[3], visitor.exported_program
        node = tensor if quantization is None else quantization.q_input
        constant = get_param_tensor(program, node) if is_param_node(program, node) else None
        found = None if constant is None else self._values.get(constant.data_ptr())
        if found is None:
            return pack(visitor, tensor, graph, *arguments)
        size, key = found
        graph.constant_data.append(ConstantDataOffset(offset=UINT64_MAX, size=size, named_key=key))
        return len(graph.constant_data) - 1

    def _copy(self, copy: Callable[..., Parameter], parameter: Parameter, memo: dict[int, Any]) -> Parameter:
        return parameter if parameter.data_ptr() in self._addresses else copy(parameter, memo)

    def _value(self, piece: Piece, shape: tuple[int, int]) -> Tensor:
        kind = np.dtype("i1") if piece.dtype == np.uint8 else piece.dtype  # 4-bit codes: a byte each
        zeros = self._zeros(shape, kind)
        key = hashlib.sha256(b"%d" % len(self._marks)).hexdigest()
        self._values[zeros.data_ptr()] = piece.nbytes, key
        self._marks.append(key)
        return zeros

    def _scale(self, piece: Piece, shape: tuple[int, int]) -> Tensor:
        mark = np.array([len(self._marks) + 1], np.float32)
        stored: NDArray[Any] = to_bfloat16(mark) if piece.dtype == np.uint16 else mark.astype(piece.dtype)
        zeros = self._zeros(shape, np.dtype("<f4") if piece.dtype == np.uint16 else piece.dtype)
        zeros[0, 0] = float(mark[0])
        self._marks.append((piece.nbytes, stored.tobytes()))
        return zeros

    def _zeros(self, shape: tuple[int, int], dtype: np.dtype[Any]) -> Tensor:
        zeros = torch.from_numpy(np.zeros(shape, dtype))  # torch.zeros would touch every page
        self._addresses.add(zeros.data_ptr())
        return zeros


def integer_tensor(codes: Tensor, scales: Tensor, *, n_bits: int) -> Tensor:
    """A matrix of codes int8 [out, in] and float32 scales [out, groups], whose `functional.linear` delegates know."""
    return IntxUnpackedToInt8Tensor(
        qdata=codes,
        scale=scales,
        zero_point=torch.zeros(scales.shape, dtype=torch.int8),
        target_dtype=getattr(torch, f"int{n_bits}"),
        block_size=(1, codes.shape[1] // scales.shape[1]),
        dtype=torch.float32,
        activation_quantization=None,  # a region rounds what it multiplies, once for several matrices
    )
