"""The ONNX target: one folder that ONNX Runtime and Transformers.js load."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from ...convert.errors import InputError, needs_extra
from ...convert.model.graph import EXPERTS, WeightGraph
from ...convert.model.lfm2 import open_graph
from ...convert.model.tensor import StackedTensor, TensorView
from ...convert.plans import FilePlan, Plan
from ...convert.stream import Execution, write_tensors
from ...quantize.policies.onnx import POLICIES
from ..encoded import EncodedTensor, StoredPart
from ..target import Address, Artifact, Runner, Target
from .model import build_graph
from .package import shared_files
from .store import Initializer

# Transformers.js finds a variant by this suffix to `model`.
_SUFFIXES = {"fp32": "", "fp16": "_fp16", "q4": "_q4", "q4f16": "_q4f16"}
_FOLDER = "onnx"


@dataclass(frozen=True)
class _Details:
    """The serialised graph, and the initializers it refers to."""

    graph: bytes
    initializers: tuple[Initializer, ...]


class OnnxTarget(Target):
    """ONNX with explicit caches, weights in external data files."""

    name = "onnx"
    title = "ONNX Runtime, Transformers.js"
    extra = "onnx"
    policies = POLICIES
    default_quant = "q4f16"

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.policy(quant)
        path = f"{_FOLDER}/model{_SUFFIXES[policy.name]}.onnx"
        with needs_extra(self.extra, "the onnx target"):
            built = build_graph(graph, policy, path + "_data")
        serialised = built.proto.SerializeToString(deterministic=True)
        store = built.store
        return Plan(
            target=self.name,
            quant=policy.name,
            class_name=policy.class_name,
            main_file=path,
            files=(FilePlan(path, len(serialised)), *store.files()),
            tensors=tuple(store.tensors),
            tensor_bytes=sum(file.nbytes for file in store.files()),
            fallbacks=tuple(store.fallbacks),
            details=_Details(serialised, tuple(store.initializers)),
        )

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        (folder / _FOLDER).mkdir(exist_ok=True)
        (folder / plan.main_file).write_bytes(plan.details.graph)
        for file in plan.files[1:]:
            with (folder / file.path).open("wb") as data:
                os.truncate(data.fileno(), file.nbytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return shared_files(graph, dict(_n_chunks(artifact) for artifact in artifacts))

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        graph = open_graph(artifact.folder, weights=False)
        plan = self.plan(graph, artifact.quant)
        _check_initializers(artifact, plan)
        found: dict[Address, list[TensorView]] = {}
        for tensor in plan.tensors:
            if tensor.role is None:
                continue
            parts = tuple(StoredPart(artifact.folder / p.path, p.offset) for p in tensor.placements)
            view = EncodedTensor(tensor.name, tensor.shape, tensor.encoding, parts)
            found.setdefault((tensor.role, tensor.layer), []).append(view)
        return {
            address: StackedTensor(views[0].name, views) if address[0] in EXPERTS else views[0]
            for address, views in found.items()
        }

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        with needs_extra(self.extra, "running an ONNX artifact"):
            from .runner import OnnxRunner

            return OnnxRunner(artifact.path, threads=threads)

    def missing(self) -> str | None:
        absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        return f'pip install "lfm-convert[{self.extra}]"' if absent else None


def _n_chunks(artifact: Plan | Artifact) -> tuple[str, int]:
    main = artifact.main_file if isinstance(artifact, Plan) else artifact.path.name
    return main.rpartition("/")[2], len(artifact.files) - 1


def _check_initializers(artifact: Artifact, plan: Plan) -> None:
    """Raises InputError unless the file's own initializers are the planned ones, whole and in place."""
    import onnx

    try:
        proto = onnx.load(artifact.path, load_external_data=False)
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"{artifact.path}: not an ONNX file: {error}") from None
    stored = {i.name: i for i in proto.graph.initializer}
    for planned in plan.details.initializers:
        found = stored.get(planned.name)
        if found is None:
            raise InputError(f"{artifact.path}: initializer '{planned.name}' is missing")
        if found != planned.to_proto():
            raise InputError(
                f"{artifact.path}: initializer '{planned.name}' is {_describe(found)}: expected {_describe(planned.to_proto())}"
            )
    for file in plan.files[1:]:
        path = artifact.folder / file.path
        size = path.stat().st_size if path.is_file() else -1
        if size != file.nbytes:
            raise InputError(f"{path}: " + ("not found" if size < 0 else f"expected {file.nbytes} bytes, found {size}"))


def _describe(proto: object) -> str:
    fields = {e.key: e.value for e in proto.external_data}  # type: ignore[attr-defined]
    return f"type {proto.data_type} {list(proto.dims)} at {fields}"  # type: ignore[attr-defined]


TARGET = OnnxTarget()
