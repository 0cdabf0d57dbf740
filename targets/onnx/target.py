"""The ONNX target: one folder that ONNX Runtime, Transformers.js and onnxruntime-genai load."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...convert.errors import UsageError, needs_extra
from ...convert.model.graph import EXPERTS, Role, WeightGraph
from ...convert.model.lfm2 import open_graph
from ...convert.model.tensor import StackedTensor, TensorView
from ...convert.plans import FilePlan, Plan, TensorPlan
from ...convert.stream import Execution, write_tensors
from ...quantize.policies.onnx import FLOATS, POLICIES
from ...quantize.policy import Policy
from ..encoded import EncodedTensor, StoredPart
from ..target import Address, Artifact, Runner, Target
from .check import check_locations, check_nodes, check_stored
from .fused import MINIMUM_RUNTIME, EveryOther, Interleaved
from .half import HalfCounter, count_scales
from .importance import FLOAT_NOTE, weighed
from .model import build_graph
from .package import shared_files
from .store import Initializer

# Transformers.js finds a variant by this stem, or by `model_file_name` "model_mixed" and dtype "q4".
_STEMS = {
    "fp32": "model",
    "fp16": "model_fp16",
    "q8": "model_quantized",
    "q4": "model_q4",
    "q4_mixed": "model_mixed_q4",
    "q4f16": "model_q4f16",
}
_FOLDER = "onnx"

# How experts are written; see `feed_forward` and `fused`.
MOE_FORMS = ("unrolled", "qmoe")


def main_file(quant: str) -> str:
    """Where the folder keeps the graph of a quant."""
    return f"{_FOLDER}/{_STEMS[quant]}.onnx"


@dataclass(frozen=True)
class _Details:
    """The serialised graph, and the initializers it refers to."""

    graph: bytes
    initializers: tuple[Initializer, ...]


@dataclass(frozen=True)
class OnnxTarget(Target):
    """ONNX with explicit caches, weights in external data files.

    `onnx_moe` is one of `MOE_FORMS`; `imatrix` is a file of importance that integer blocks are weighed by.
    """

    name = "onnx"
    title = "ONNX Runtime, Transformers.js, onnxruntime-genai"
    extra = "onnx"
    policies = POLICIES
    default_quant = "q4f16"

    onnx_moe: str = "unrolled"
    imatrix: str | None = field(default=None, metadata={"is_file": True})

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.policy(quant)
        if self.onnx_moe not in MOE_FORMS:
            raise UsageError(f"--onnx-moe is '{self.onnx_moe}': expected one of {', '.join(MOE_FORMS)}")
        is_fused = self.onnx_moe == "qmoe"
        if is_fused and graph.config.moe is None:
            raise UsageError("--onnx-moe qmoe: a dense model has no experts")
        path = main_file(policy.name)
        with needs_extra(self.extra, "the onnx target"):
            built = build_graph(graph, policy, path + "_data", fused_experts=is_fused)
        serialised = built.proto.SerializeToString(deterministic=True)
        store = built.store
        tensors, notes = self._weigh(store.tensors, graph, policy)
        return Plan(
            target=self.name,
            quant=policy.name,
            class_name=policy.class_name,
            main_file=path,
            files=(FilePlan(path, len(serialised)), *store.files()),
            tensors=tensors,
            tensor_bytes=sum(file.nbytes for file in store.files()),
            fallbacks=tuple(store.fallbacks),
            notes=(*_notes(graph, is_fused=is_fused), *notes),
            details=_Details(serialised, tuple(store.initializers)),
        )

    def _weigh(
        self, tensors: Sequence[TensorPlan], graph: WeightGraph, policy: Policy
    ) -> tuple[tuple[TensorPlan, ...], tuple[str, ...]]:
        if self.imatrix is None:
            return tuple(tensors), ()
        if policy.name in FLOATS:
            return tuple(tensors), (FLOAT_NOTE,)
        return weighed(tensors, graph, Path(self.imatrix))

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        if self.missing() is None:
            check_nodes(plan.details.graph)
        else:
            run.note("the graph was not checked: onnxruntime is not installed")
        (folder / _FOLDER).mkdir(exist_ok=True)
        (folder / plan.main_file).write_bytes(plan.details.graph)
        for file in plan.files[1:]:
            with (folder / file.path).open("wb") as data:
                os.truncate(data.fileno(), file.nbytes)
        counter = HalfCounter()
        write_tensors(counter.watch(plan.tensors), folder, run)
        check_stored(folder / plan.main_file, folder, plan.details.initializers, plan.files[1:])
        if counter.n_seen:
            run.note(counter.sentence)
        if scales := count_scales(plan.tensors, folder):
            run.note(scales)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        artifacts = list(artifacts)
        main_files = {artifact.quant: _main_file(artifact) for artifact in artifacts}
        n_chunks = {_main_file(artifact).rpartition("/")[2]: len(artifact.files) - 1 for artifact in artifacts}
        return shared_files(graph, main_files, n_chunks)

    def check_files(self, artifact: Artifact) -> None:
        if self.missing() is None:
            check_locations(artifact.path, artifact.files)

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        graph = open_graph(artifact.folder, weights=False)
        # the file of importance says nothing of where bytes lie, and may be gone
        target = replace(OnnxTarget().with_options(artifact.options), imatrix=None)
        plan = target.plan(graph, artifact.quant)
        check_stored(artifact.path, artifact.folder, plan.details.initializers, plan.files[1:])
        found: dict[Address, list[TensorView]] = {}
        for tensor in plan.tensors:
            if tensor.role is None:
                continue
            parts = tuple(StoredPart(artifact.folder / p.path, p.offset) for p in tensor.placements)
            view = EncodedTensor(tensor.name, tensor.shape, tensor.encoding, parts)
            if isinstance(tensor.view, Interleaved):
                found[Role.EXPERT_GATE, tensor.layer] = [EveryOther(view, second=False)]
                found[Role.EXPERT_UP, tensor.layer] = [EveryOther(view, second=True)]
            else:
                found.setdefault((tensor.role, tensor.layer), []).append(view)
        return {address: _whole(address[0], views) for address, views in found.items()}

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        with needs_extra(self.extra, "running an ONNX artifact"):
            from .runner import OnnxRunner

            return OnnxRunner(artifact.path, threads=threads)

    def missing(self) -> str | None:
        absent = [name for name in ("onnx", "onnxruntime") if importlib.util.find_spec(name) is None]
        return f'pip install "lfm-convert[{self.extra}]"' if absent else None


def _main_file(artifact: Plan | Artifact) -> str:
    if isinstance(artifact, Plan):
        return artifact.main_file
    return artifact.path.relative_to(artifact.folder).as_posix()


def _whole(role: Role, views: list[TensorView]) -> TensorView:
    """A weight as the graph has it: experts that were stored one by one are stacked."""
    return StackedTensor(views[0].name, views) if role in EXPERTS and len(views[0].shape) == 2 else views[0]


def _notes(graph: WeightGraph, *, is_fused: bool) -> tuple[str, ...]:
    """Which form the experts have, and the runtime it needs."""
    if graph.config.moe is None:
        return ()
    if is_fused:
        return (f"experts are QMoE nodes: needs ONNX Runtime {MINIMUM_RUNTIME} or later, on the CPU",)
    return ("experts are unrolled into conditionals: runs on ONNX Runtime 1.24 and later",)


TARGET = OnnxTarget()
