"""ONNX graphs of any writer: whether their inputs can be named, which quant they are, and which files they read."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.errors import InputError, needs_extra
from ...graph.source.config_file import load_config
from ..recognised import coarsest, most_common, own_file
from ..target import Artifact, ListedTensor
from .arrays import FLOATS, NAMES
from .check import graphs_in, load_graph, nodes_of
from .inputs import is_cache, unknown_inputs

_SUFFIX, _FOLDER = ".onnx", "onnx"
_PACKED = {"MatMulNBits": ("bits", 4), "GatherBlockQuantized": ("bits", 4), "QMoE": ("expert_weight_bits", 4)}
# Where an operator that turns heads takes the table of cosines, [positions, pairs].
_COSINES = {"GroupQueryAttention": 7, "RotaryEmbedding": 2}
_HALF = 10  # ONNX's float16
# Fewer elements decide no quant.
_LEAST_WEIGHT = 1 << 10


def recognise(path: Path, *, extra: str) -> tuple[Artifact, ...]:
    """The language models of a folder and its `onnx/`, or the one of a file.

    Raises: InputError for a file that is damaged or lacks its data, or that has inputs of unknown meaning; BackendError
    if onnx, which reads graphs, is not installed.
    """
    if path.is_dir():
        files = sorted([*path.glob(f"*{_SUFFIX}"), *path.glob(f"{_FOLDER}/*{_SUFFIX}")])
    else:
        files = [path] if path.suffix == _SUFFIX else []
    if not files:
        return ()
    with needs_extra(extra, "reading an ONNX graph"):
        graphs = {file: load_graph(file) for file in files}
    if path.is_dir():  # of a model that sees or hears, the other parts lie beside its decoder
        graphs = {file: proto for file, proto in graphs.items() if _reads_tokens(proto)}
    return tuple(_artifact(file, proto) for file, proto in graphs.items())


def _reads_tokens(proto: Any) -> bool:
    return "input_ids" in _names(proto.graph.input) and "logits" in _names(proto.graph.output)


def _names(values: Iterable[Any]) -> list[str]:
    return [value.name for value in values]


def _artifact(path: Path, proto: Any) -> Artifact:
    inputs = _names(proto.graph.input)
    unknown = unknown_inputs(inputs)
    if not _reads_tokens(proto) or unknown:
        what = f"takes {', '.join(unknown[:4])}" if unknown else "gives no logits of input_ids"
        raise InputError(
            f"{path}: {what}: expected a graph that takes input_ids and caches named past…, and gives logits"
        )
    folder = path.parent.parent if path.parent.name == _FOLDER else path.parent
    _refuse_others(folder)
    quant, class_name = _quant(proto)
    files = (path, *_data_files(path, proto))
    return Artifact(path, folder, "onnx", quant, class_name, files, is_recognised=True)


def _refuse_others(folder: Path) -> None:
    """Raises InputError if the config beside a graph is that of a model of no family here."""
    if (folder / CONFIG_FILE).is_file():
        load_config(folder)


def _data_files(path: Path, proto: Any) -> list[Path]:
    names = dict.fromkeys(
        entry.value
        for initializer in _initializers(proto.graph)
        for entry in initializer.external_data
        if entry.key == "location"
    )
    return [own_file(path, name) for name in names]


def _initializers(graph: Any) -> Iterator[Any]:
    return (initializer for each in graphs_in(graph) for initializer in each.initializer)


def _quant(proto: Any) -> tuple[str, str]:
    """As Transformers.js calls it: the bits of packed matrices, and f16 where caches are half precision."""
    is_half = any(v.type.tensor_type.elem_type == _HALF for v in proto.graph.input if is_cache(v.name))
    bits = Counter[str]()
    for node in nodes_of(proto.graph):
        if node.op_type in _PACKED:
            key, default = _PACKED[node.op_type]
            bits[str(next((a.i for a in node.attribute if a.name == key), default))] += 1
        elif node.op_type in ("MatMulInteger", "DynamicQuantizeMatMul"):
            bits["8"] += 1
    if bits:
        name = f"q{most_common(bits)}"
        return name + ("f16" if is_half and name == "q4" else ""), coarsest(f"q{n}" for n in bits)
    kinds = Counter[str]()
    for each in _initializers(proto.graph):
        if each.data_type in FLOATS and math.prod(each.dims) >= _LEAST_WEIGHT:
            kinds["fp32" if NAMES[each.data_type] == "F32" else "fp16"] += math.prod(each.dims)
    name = most_common(kinds) or "fp32"
    return name, "f32" if name == "fp32" else "f16"


def listed(artifact: Artifact) -> tuple[ListedTensor, ...]:
    """Every initializer as large as a weight."""
    found = []
    for each in _initializers(load_graph(artifact.path).graph):
        size = math.prod(each.dims)
        if size >= _LEAST_WEIGHT and each.data_type in NAMES:
            name = NAMES[each.data_type]
            width = {"F32": 4, "F16": 2, "BF16": 2}.get(name, 1)
            found.append(ListedTensor(each.name, name, size * width))
    return tuple(found)


def rotary_rows(proto: Any) -> list[int]:
    """The positions that each stored table of cosines has a row for."""
    tables = {each.name: each for graph in graphs_in(proto.graph) for each in graph.initializer}
    taken = {
        node.input[_COSINES[node.op_type]]
        for node in nodes_of(proto.graph)
        if len(node.input) > _COSINES.get(node.op_type, math.inf)
    }
    return [tables[name].dims[0] for name in sorted(taken & tables.keys()) if len(tables[name].dims) == 2]
