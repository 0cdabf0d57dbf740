"""Gives planned tensors the importance of their columns, which integer blocks weigh their error by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS, Address
from ...graph.tensor import Shape
from ...quantize.encodings.int_block import IntBlock32
from ...quantize.imatrix import read_importance
from ..plans import TensorPlan

FLOAT_NOTE = "--imatrix does not apply to float quants"


def weighed(
    tensors: Iterable[TensorPlan], graph: WeightGraph, path: Path
) -> tuple[tuple[TensorPlan, ...], tuple[str, ...]]:
    """The tensors, matrices of integer blocks with what a file of `lfm-convert calibrate` or llama-imatrix has of them,
    and what the manifest says of it.

    An expert that is stored by itself has its own slice of the stack's.

    Raises: InputError for a file that is none, or one of another model.
    """
    importance = read_importance(path)
    shapes: dict[Address, Shape] = {(weight.role, weight.layer): weight.shape for weight in graph.weights()}
    importance.refuse_foreign(shapes)
    found, without, n_seen = [], [], Counter[Address]()
    for tensor in tensors:
        if tensor.role is None or not isinstance(tensor.encoding, IntBlock32):
            found.append(tensor)
            continue
        address = (tensor.role, tensor.layer)
        columns = importance.of_weight(address, shapes[address])
        if columns is None:
            without.append(tensor.name)
        elif tensor.role in EXPERTS and len(tensor.shape) == 2:
            columns = columns[n_seen[address]][None]
        n_seen[address] += 1
        found.append(replace(tensor, importance=columns))
    note = f"scales and zero points are searched by the importance of columns in {importance.path.name}"
    return tuple(found), (note, *importance.notes({address: shapes[address] for address in n_seen}, without))
