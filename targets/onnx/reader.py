"""Reads an ONNX artifact back: its manifest says where weights lie, and its graph must say the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ...graph.roles import EXPERTS, Address, Role
from ...graph.tensor import StackedTensor, TensorView
from ...quantize.encoding import get_encoding
from ...quantize.stored import EncodedTensor, StoredPart
from ..encoded import stored_tensors
from ..plans import Plan
from ..target import Artifact
from .check import Place, check_places, check_stored
from .qmoe import EveryOther

_Stored = list[tuple[Address, EncodedTensor]]


def read_listed(artifact: Artifact) -> dict[Address, TensorView] | None:
    """The decoded weights, lazily; None of an artifact written before manifests said where they lie.

    Raises: InputError for a graph that reads them elsewhere.
    """
    stored = stored_tensors(artifact)
    if stored is None:
        return None
    check_places(artifact.path, _places(artifact))
    return _by_address(stored, artifact)


def read_planned(artifact: Artifact, plan: Plan) -> dict[Address, TensorView]:
    """The same, where they lie by a plan of the same model, quant and options.

    Raises: InputError for a graph that is not the planned one.
    """
    check_stored(artifact.path, artifact.folder, plan.details.initializers, plan.files[1:])
    stored: _Stored = []
    for tensor in plan.tensors:
        if tensor.role is not None:
            parts = tuple(StoredPart(artifact.folder / p.path, p.offset) for p in tensor.placements)
            view = EncodedTensor(tensor.name, tensor.shape, tensor.encoding, parts)
            stored.append(((tensor.role, tensor.layer), view))
    return _by_address(stored, artifact)


def _places(artifact: Artifact) -> Iterator[Place]:
    for entry in artifact.entry["tensors"]:
        *rows, n_cols = entry["shape"]
        for part, stored in zip(get_encoding(entry["encoding"]).parts(n_cols), entry["parts"], strict=True):
            yield Place(entry["name"], stored["path"], stored["offset"], math.prod(rows) * part.row_nbytes)


def _by_address(stored: _Stored, artifact: Artifact) -> dict[Address, TensorView]:
    """Weights as the graph has them: experts that were stored one by one are stacked, rows by turns are sorted."""
    found: dict[Address, list[TensorView]] = {}
    for (role, layer), view in stored:
        if role is Role.EXPERT_GATE and artifact.options.get("onnx_moe") == "qmoe":
            found[Role.EXPERT_GATE, layer] = [EveryOther(view, second=False)]
            found[Role.EXPERT_UP, layer] = [EveryOther(view, second=True)]
        else:
            found.setdefault((role, layer), []).append(view)
    return {address: _whole(address[0], views) for address, views in found.items()}


def _whole(role: Role, views: list[TensorView]) -> TensorView:
    return StackedTensor(views[0].name, views) if role in EXPERTS and len(views[0].shape) == 2 else views[0]
