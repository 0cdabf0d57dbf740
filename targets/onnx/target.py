"""The ONNX target: one folder that ONNX Runtime, Transformers.js and onnxruntime-genai load."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from ...graph.config import ModelConfig
from ...graph.errors import InputError, UsageError, needs_extra
from ...graph.graph import WeightGraph
from ...graph.opening import open_graph
from ...graph.roles import EXPERTS, Address, Role
from ...graph.source.config_file import OWN_NAMES
from ...graph.tensor import TensorView
from ...quantize.policies.onnx import AUTO_BASE, FLOATS, MIXABLE, POLICIES
from ...quantize.policy import Policy, product_of
from ..options import imatrix_option, option
from ..plans import FilePlan, Plan, TensorPlan
from ..running import RunMemory
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, Runner, Target
from .caches import kept_positions
from .check import check_locations, check_nodes, check_stored, load_graph
from .half_precision import HalfCounter, count_scales
from .importance import FLOAT_NOTE, weighed
from .model import PRODUCER, build_graph
from .package import HALF_CACHES, shared_files
from .qmoe import MINIMUM_RUNTIME
from .reader import read_listed, read_planned
from .running import run_memory
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

# How experts are written; see `mixture` and `qmoe`.
MOE_FORMS = ("unrolled", "qmoe")
# What caches of sliding windows hold; see `caches`.
CACHES = ("window", "whole")


def main_file(quant: str, told: str = "") -> str:
    """Where the folder keeps the graph of a quant; what else is `told` of it stands before what a client adds itself."""
    return f"{_FOLDER}/{_STEMS[quant].replace('model', f'model{told}', 1)}.onnx"


@dataclass(frozen=True)
class _Details:
    """The serialised graph, and the initializers it refers to."""

    graph: bytes
    initializers: tuple[Initializer, ...]


@dataclass(frozen=True)
class OnnxTarget(Target):
    """ONNX with explicit caches, weights in external data files.

    `onnx_moe` is one of `MOE_FORMS`, `onnx_caches` of `CACHES`; `imatrix` is a file of importance that integer blocks
    are weighed by.
    """

    name = "onnx"
    title = "ONNX Runtime, Transformers.js, onnxruntime-genai"
    extra = "onnx"
    packages = ("onnx", "onnxruntime")
    policies = POLICIES
    default_quant = "q4f16"
    auto_base = AUTO_BASE
    gives_vectors = True

    onnx_moe: str = option(
        MOE_FORMS[0], help="experts, for any runtime or for ONNX Runtime 1.31 on the CPU", choices=MOE_FORMS
    )
    onnx_caches: str = option(
        CACHES[0], help="caches of sliding windows, of their size or whole for onnxruntime-genai", choices=CACHES
    )
    imatrix: str | None = imatrix_option()

    def run_memory(self, quant: str, tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
        return run_memory(tensors, is_half=self.base_of(quant) in HALF_CACHES)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.mixed(self.policy(quant))
        is_fused = self.onnx_moe == "qmoe"
        if is_fused and not graph.config.is_mixture:
            raise UsageError("--onnx-moe qmoe: a dense model has no experts")
        path = main_file(policy.name, self._told(graph, policy.name))
        with needs_extra(self.extra, "the onnx target"):
            built = build_graph(
                graph, policy, path + "_data", fused_experts=is_fused, whole_caches=self.onnx_caches == "whole"
            )
        serialised = built.proto.SerializeToString(deterministic=True)
        store = built.store
        tensors, notes = self._weigh(store.tensors, graph, policy)
        return Plan(
            target=self.name,
            quant=self.labelled(policy.name),
            class_name=policy.class_name,
            main_file=path,
            files=(FilePlan(path, len(serialised)), *store.files()),
            tensors=tensors,
            tensor_bytes=sum(file.nbytes for file in store.files()),
            fallbacks=tuple(store.fallbacks),
            notes=(*self._notes(graph, policy), *notes),
            details=_Details(serialised, tuple(store.initializers)),
        )

    def _told(self, graph: WeightGraph, quant: str) -> str:
        if self.allotment is None:
            return "_tuned" if graph.tuned else ""
        return "_tuned" if self.allotment.word == quant else f"_tuned_{self.allotment.word}"

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """Either width, or floats, of what is in blocks; QMoE has experts of one width."""
        names = next((names for names in MIXABLE if tensor.encoding.name in names[:2]), ())
        return names[:2] if tensor.role in EXPERTS and self.onnx_moe == "qmoe" else names

    def stored_alike(self, role: Role, layer: int | None) -> Hashable:
        """Matrices of one input are stored as one, and multiplied by at once."""
        is_fused = role in EXPERTS and self.onnx_moe == "qmoe"
        return (EXPERTS if is_fused else product_of(role)), layer

    def covers(self, tensor: TensorPlan) -> Sequence[Address]:
        """QMoE has the rows of gate and up by turns in one tensor."""
        own = super().covers(tensor)
        is_woven = tensor.role is Role.EXPERT_GATE and self.onnx_moe == "qmoe"
        return (*own, (Role.EXPERT_UP, tensor.layer)) if is_woven else own

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
        prepare_file(folder / plan.main_file, header=plan.details.graph, n_bytes=len(plan.details.graph))
        for file in plan.files[1:]:
            prepare_file(folder / file.path, header=b"", n_bytes=file.nbytes)
        counter = HalfCounter()
        write_tensors(counter.watch(plan.tensors), folder, run)
        check_stored(folder / plan.main_file, folder, plan.details.initializers, plan.files[1:])
        if counter.n_seen:
            run.note(counter.sentence)
        if scales := count_scales(plan.tensors, folder):
            run.note(scales)

    def _notes(self, graph: WeightGraph, policy: Policy) -> tuple[str, ...]:
        """What a reader of the manifest must know of runtimes."""
        found, stand_in = [], graph.config.family.onnx.model_type
        if self.onnx_moe == "qmoe":
            found.append(f"experts are QMoE nodes: needs ONNX Runtime {MINIMUM_RUNTIME} or later, on the CPU")
        elif graph.config.is_mixture:
            found.append("experts are unrolled into conditionals: runs on ONNX Runtime 1.24 and later")
        if stand_in:
            found.append(
                f"config.json says model_type '{stand_in}', which Transformers.js knows and whose caches are the "
                f"same; '{OWN_NAMES}' there has the model's own"
            )
        if graph.config.family.onnx.is_wide and policy.name in HALF_CACHES:
            found.append("the residual stream and its norms are float32: half precision cannot hold the stream")
        if not self._has_equal_caches(graph):
            found.append(
                "caches of sliding windows do not grow beyond them; onnxruntime-genai cannot have that: there is no "
                "genai_config.json for it, which --onnx-caches whole writes"
            )
        return tuple(found)

    def _has_equal_caches(self, graph: WeightGraph) -> bool:
        """Whether all caches hold all positions, as onnxruntime-genai has them."""
        return not any(kept_positions(graph.config, is_whole=self.onnx_caches == "whole").values())

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        artifacts = list(artifacts)
        main_files = {artifact.quant: _main_file(artifact) for artifact in artifacts}
        n_chunks = {_main_file(artifact).rpartition("/")[2]: len(artifact.files) - 1 for artifact in artifacts}
        configured = {a.quant: self if isinstance(a, Plan) else configured_as(a) for a in artifacts}
        genai = [quant for quant, target in configured.items() if target._has_equal_caches(graph)]
        return shared_files(graph, main_files, n_chunks, genai=genai)

    def check_files(self, artifact: Artifact) -> None:
        if self.missing() is None:
            check_locations(artifact.path, artifact.files)

    def recognise(self, path: Path) -> Sequence[Artifact]:
        from .recognise import recognise

        return recognise(path, extra=self.extra)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        from .recognise import listed

        return listed(artifact)

    def longest_text(self, artifact: Artifact, config: ModelConfig) -> int:
        from .recognise import rotary_rows

        with needs_extra(self.extra, "reading an ONNX graph"):
            return min([config.context_length, *rotary_rows(load_graph(artifact.path))])

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        if artifact.is_recognised:
            return read_recognised(artifact)
        found = read_listed(artifact)
        if found is None:
            graph = open_graph(artifact.folder, weights=False)
            written = configured_as(artifact)
            found = read_planned(artifact, written.plan(graph, written.base_of(artifact.quant)))
        return found

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        with needs_extra(self.extra, "running an ONNX artifact"):
            from .runner import AnybodysRunner, OnnxRunner

            runner = OnnxRunner if not artifact.is_recognised else AnybodysRunner
            return runner(artifact.path, threads=threads, folder=artifact.folder)


def read_recognised(artifact: Artifact) -> dict[Address, TensorView]:
    """The decoded weights of a graph without a manifest, which may be one of ours whose manifest was lost.

    Raises: as `read_foreign`.
    """
    proto = load_graph(artifact.path)
    quant = next((quant for quant, stem in _STEMS.items() if artifact.path.name == f"{stem}.onnx"), "")
    for form in MOE_FORMS if proto.producer_name == PRODUCER else ():
        own = replace(artifact, entry={"options": {"onnx_moe": form}})
        with suppress(UsageError, InputError):
            graph = open_graph(artifact.folder, weights=False)
            return read_planned(own, configured_as(own).plan(graph, quant))
    from .foreign import read_foreign

    return read_foreign(artifact.path, proto)


def _main_file(artifact: Plan | Artifact) -> str:
    if isinstance(artifact, Plan):
        return artifact.main_file
    return artifact.path.relative_to(artifact.folder).as_posix()


def configured_as(artifact: Artifact) -> OnnxTarget:
    """The target as it was when it wrote an artifact, apart from the file of importance, which may be gone."""
    return replace(OnnxTarget().as_written(artifact), imatrix=None)


TARGET = OnnxTarget()
