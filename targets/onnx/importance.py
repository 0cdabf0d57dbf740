"""Gives planned tensors the importance of their columns, which integer blocks weigh their error by."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from ...convert.model.graph import EXPERTS, WeightGraph
from ...convert.model.tensor import Shape
from ...convert.plans import TensorPlan
from ...quantize.encodings.int_block import IntBlock32
from ..gguf.imatrix import ImportanceMatrix, read_importance
from ..target import Address

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
    return tuple(found), _notes(importance, without)


def _notes(importance: ImportanceMatrix, without: list[str]) -> tuple[str, ...]:
    notes = [f"scales and zero points are searched by the importance of columns in {importance.path.name}"]
    if without:
        notes.append(f"{importance.path.name} has no importance of {', '.join(without)}: all columns count the same")
    for name, experts in importance.never_hit.items():
        listed = ", ".join(map(str, experts))
        notes.append(f"{importance.path.name}: no token reached experts {listed} of {name}: all columns count the same")
    return tuple(notes)
