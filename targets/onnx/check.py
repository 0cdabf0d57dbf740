"""Checks a written graph without its weights: what the installed ONNX Runtime says of it, and where its bytes lie.

ONNX Runtime itself is the judge of nodes. It loads the graph with every weight turned into an input, which costs
no memory and makes it look at each node: whether the operator and its attributes exist in its schemas, the types
fit, shapes can be inferred without contradiction, and the CPU has a kernel.
"""

from __future__ import annotations

import bisect
import ctypes
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ...graph.errors import Faults, InputError
from ..plans import FilePlan
from .builder import MICROSOFT
from .store import Initializer


def check_nodes(serialised: bytes) -> None:
    """Raises ValueError, which is a bug of ours, if ONNX Runtime refuses a node or a product's parts do not fit it."""
    try:
        _load(serialised)
    finally:
        _give_back()


def _give_back() -> None:
    """Returns what glibc keeps for itself of a session that is gone: 126 MB of a mixture's thousands of nodes, for as long
    as the weights are written. Other systems' libraries do it by themselves, or cannot.
    """
    with suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _load(serialised: bytes) -> None:
    """Lets ONNX Runtime look at every node."""
    import onnx
    import onnxruntime

    model = onnx.load_model_from_string(serialised)
    _check_products(model.graph)
    weights = [i for i in model.graph.initializer if i.data_location == onnx.TensorProto.EXTERNAL]
    for weight in weights:
        model.graph.initializer.remove(weight)
    model.graph.input.extend(onnx.helper.make_tensor_value_info(w.name, w.data_type, list(w.dims)) for w in weights)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.strict_shape_type_inference", "1")
    options.log_severity_level = 3
    try:
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime raises its own kinds
        raise ValueError(f"ONNX Runtime {onnxruntime.__version__} refuses the graph: {error}") from None


def _check_products(graph: Any) -> None:
    """The parts of each packed product against its sizes, which ONNX Runtime looks at only when it runs."""
    dims = {i.name: list(i.dims) for i in graph.initializer}
    for node in nodes_of(graph):
        if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits"):
            continue
        k, n, bits, block = ({a.name: a.i for a in node.attribute}[name] for name in ("K", "N", "bits", "block_size"))
        n_blocks = k // block
        expected = [[n, n_blocks, block * bits // 8], [n, n_blocks], [n, math.ceil(n_blocks * bits / 8)]]
        found = [dims[name] for name in node.input[1:]]
        if found != expected:
            raise ValueError(f"{node.name} of {n} x {k} has parts {found}: expected {expected}")


def graphs_in(graph: Any) -> Iterator[Any]:
    """A graph, and those inside its nodes: the branches of conditions."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from graphs_in(attribute.g)


def nodes_of(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches included."""
    return (node for each in graphs_in(graph) for node in each.node)


def check_locations(path: Path, files: Iterable[Path]) -> None:
    """Raises InputError if a graph reads weights from a file that is not one of these."""
    own = {file.name for file in files if file.parent == path.parent}
    faults = Faults()
    for initializer in load_graph(path).graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location" and entry.value not in own:
                faults.add(
                    f"initializer '{initializer.name}' is read from '{entry.value}': not a file of this artifact"
                )
    faults.raise_if_any(str(path))


@dataclass(frozen=True)
class Place:
    """Where a part of a tensor lies. Units: bytes."""

    tensor: str
    path: str
    offset: int
    nbytes: int


def check_places(path: Path, places: Iterable[Place]) -> None:
    """Raises InputError unless each of these lies within what an initializer of the graph reads."""
    ranges: dict[str, list[tuple[int, int]]] = defaultdict(list)
    for initializer in load_graph(path).graph.initializer:
        fields = {entry.key: entry.value for entry in initializer.external_data}
        if fields:
            start = int(fields.get("offset", 0))
            ranges[fields["location"]].append((start, start + int(fields["length"])))
    for found in ranges.values():
        found.sort()
    faults = Faults()
    for place in places:
        stop, known = place.offset + place.nbytes, ranges[PurePosixPath(place.path).name]
        before = bisect.bisect_right(known, (place.offset, math.inf)) - 1
        if before < 0 or known[before][1] < stop:
            faults.add(f"no initializer reads '{place.tensor}' from {place.path}, bytes {place.offset} to {stop}")
    faults.raise_if_any(str(path))


def check_stored(path: Path, folder: Path, planned: Iterable[Initializer], files: Sequence[FilePlan]) -> None:
    """Raises InputError unless the initializers of a file are the planned ones, whole and in place.

    `files` are the data files, relative to `folder`.
    """
    stored = {i.name: i for i in load_graph(path).graph.initializer}
    faults = Faults()
    for initializer in planned:
        expected, found = initializer.to_proto(), stored.get(initializer.name)
        if found is None:
            faults.add(f"initializer '{initializer.name}' is missing")
        elif found != expected:
            faults.add(f"initializer '{initializer.name}' is {_describe(found)}: expected {_describe(expected)}")
    for file in files:
        data = folder / file.path
        size = data.stat().st_size if data.is_file() else -1
        if size != file.nbytes:
            faults.add(f"{file.path}: " + ("not found" if size < 0 else f"expected {file.nbytes} bytes, found {size}"))
    faults.raise_if_any(str(path))


def load_graph(path: Path) -> Any:
    """A graph without its data. Raises: InputError for a file that is none."""
    import onnx

    try:
        proto = onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"{path}: not an ONNX file: {error}") from None
    bad = next((name for name in _names(proto.graph) if not isinstance(name, str)), None)
    if bad is not None:  # protobuf gives what is no UTF-8 as bytes
        raise InputError(f"{path}: not an ONNX file: the name {bad!r:.60} is not text")
    return proto


def _names(graph: Any) -> Iterator[Any]:
    """Every name in a graph and in the graphs inside its nodes."""
    for each in graphs_in(graph):
        for value in (*each.input, *each.output, *each.value_info):
            yield value.name
            yield from (axis.dim_param for axis in value.type.tensor_type.shape.dim)
        for initializer in each.initializer:
            yield initializer.name
            yield from (text for entry in initializer.external_data for text in (entry.key, entry.value))
        for node in each.node:
            yield from (node.name, node.op_type, node.domain, *node.input, *node.output)
            yield from (attribute.name for attribute in node.attribute)


def _describe(proto: Any) -> str:
    fields = {e.key: e.value for e in proto.external_data}
    return f"type {proto.data_type} {list(proto.dims)} at {fields}"
