"""Checks a written graph without its weights: what the installed ONNX Runtime says of it, and where its bytes lie.

ONNX Runtime itself is the judge of nodes. It loads the graph with every weight turned into an input, which costs
no memory and makes it look at each node: whether the operator and its attributes exist in its schemas, the types
fit, shapes can be inferred without contradiction, and the CPU has a kernel.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ...convert.errors import Faults, InputError
from ...convert.plans import FilePlan
from .builder import MICROSOFT
from .store import Initializer


def check_nodes(serialised: bytes) -> None:
    """Raises ValueError, which is a bug of ours, if ONNX Runtime refuses a node or a product's parts do not fit it."""
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
    for node in _nodes(graph):
        if (node.domain, node.op_type) != (MICROSOFT, "MatMulNBits"):
            continue
        k, n, bits, block = ({a.name: a.i for a in node.attribute}[name] for name in ("K", "N", "bits", "block_size"))
        n_blocks = k // block
        expected = [[n, n_blocks, block * bits // 8], [n, n_blocks], [n, math.ceil(n_blocks * bits / 8)]]
        found = [dims[name] for name in node.input[1:]]
        if found != expected:
            raise ValueError(f"{node.name} of {n} x {k} has parts {found}: expected {expected}")


def _nodes(graph: Any) -> Iterator[Any]:
    """All nodes, those of branches included."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from _nodes(attribute.g)


def check_locations(path: Path, files: Iterable[Path]) -> None:
    """Raises InputError if a graph reads weights from a file that is not one of these."""
    own = {file.name for file in files if file.parent == path.parent}
    faults = Faults()
    for initializer in _load(path).graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location" and entry.value not in own:
                faults.add(
                    f"initializer '{initializer.name}' is read from '{entry.value}': not a file of this artifact"
                )
    faults.raise_if_any(str(path))


def check_stored(path: Path, folder: Path, planned: Iterable[Initializer], files: Sequence[FilePlan]) -> None:
    """Raises InputError unless the initializers of a file are the planned ones, whole and in place.

    `files` are the data files, relative to `folder`.
    """
    stored = {i.name: i for i in _load(path).graph.initializer}
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


def _load(path: Path) -> Any:
    import onnx

    try:
        return onnx.load(path, load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"{path}: not an ONNX file: {error}") from None


def _describe(proto: Any) -> str:
    fields = {e.key: e.value for e in proto.external_data}
    return f"type {proto.data_type} {list(proto.dims)} at {fields}"
