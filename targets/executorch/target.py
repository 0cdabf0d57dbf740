"""The ExecuTorch target: one `.pte` that the stock LLM runner, its Android and its iOS wrapper load."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.errors import UsageError, needs_extra
from ...graph.graph import WeightGraph
from ...graph.opening import open_graph
from ...graph.roles import Address
from ...graph.tensor import TensorView
from ...quantize.policies.executorch import GRAMMAR, POLICIES, executorch_policy, mixable
from ...quantize.policy import Policy
from ..cache_length import DEFAULT_CONTEXT, choose_context, rope_notes
from ..hub_folder import base_config, common_files, json_bytes
from ..naming import fit_name
from ..options import option
from ..plans import FilePlan, Plan, TensorPlan
from ..running import RunMemory
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, NotJudged, Runner, Target, named_stem
from .backends import BACKENDS, XNNPACK, find_backend, refuse_missing, refuse_running
from .file_size import file_bytes
from .fused import MINIMUM_RUNTIME, MOE_FORMS, OPERATOR, moe_policy
from .layout import CONTEXT_METHOD, DATA_SUFFIX, place
from .memory import base_memory_bytes
from .recognise import recognise
from .refusals import refuse_blocks
from .tokenizer import COMPOSED_NOTE, check_tokenizer, followed


@dataclass(frozen=True)
class _Details:
    """Of a plan: positions the caches hold, the scratch file's name and its bytes."""

    context: int
    scratch: str
    scratch_bytes: int


@dataclass(frozen=True)
class ExecutorchTarget(Target):
    """XNNPACK delegates around static caches. `context` is the number of positions the caches hold.

    `et_moe` is one of `MOE_FORMS`, `et_backend` one of `BACKENDS`. With `external_weights` the
    weights lie in a .ptd file beside the program. `outfile` is the program's name.
    """

    name = "executorch"
    title = "ExecuTorch (Android, iOS)"
    extra = "executorch"
    packages = ("torch", "torchao", "executorch")
    policies = POLICIES
    grammar = GRAMMAR
    default_quant = "8da4w"
    auto_base = "8da4w"
    size_error = 0.005
    file_suffix = ".pte"

    context: int | None = option(None, help=f"positions that the caches hold; default: {DEFAULT_CONTEXT}")
    et_moe: str = option(
        MOE_FORMS[0], help="experts, as a delegate each or one operator a layer (executorch 1.5)", choices=MOE_FORMS
    )
    external_weights: bool = option(False, help="weights in a .ptd file beside the program")
    et_backend: str = option(
        XNNPACK, help="who runs it; all but xnnpack are written, and not run here", choices=tuple(BACKENDS)
    )
    outfile: str | None = option(None, help="name of the file", is_asked=False)

    def run_memory(self, quant: str, tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
        return RunMemory(weights=size_bytes, cache_itemsize=4)  # float32 at any quant

    def policy(self, quant: str) -> Policy:
        """Of any name of the grammar, listed or not. Raises UsageError with the grammar."""
        return executorch_policy(quant)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        backend = find_backend(self.et_backend)
        if self.external_weights and self.et_backend != XNNPACK:
            raise UsageError(f"--external-weights: {backend.title} keeps its weights inside the program")
        refuse_blocks(graph.config)
        policy = moe_policy(self.mixed(self.policy(quant)), self.et_moe, graph)
        label = self.labelled(policy.name)
        context = choose_context(graph.config, self.context)
        suffix = "" if self.et_backend == XNNPACK else f"-{self.et_backend}"
        own = fit_name(graph.name, f"{self.ending(graph, policy.name)}{suffix}")
        stem = named_stem(self.outfile, self.file_suffix, label, own)
        path, *_ = paths = stem + self.file_suffix, stem + DATA_SUFFIX
        scratch = path + ".weights"
        tensors, fallbacks, scratch_bytes = place(graph, policy, scratch)
        sizes = file_bytes(graph.config, tensors, context=context, is_split=self.external_weights)
        return Plan(
            target=self.name,
            quant=label,
            class_name=policy.class_name,
            main_file=path,
            files=tuple(FilePlan(file, n_bytes) for file, n_bytes in zip(paths, sizes, strict=False)),
            tensors=tuple(tensors),
            tensor_bytes=sum(tensor.nbytes for tensor in tensors),
            fallbacks=tuple(fallbacks),
            notes=(
                *_notes(graph, context, is_float=policy.class_name == "f32", is_fused=self.et_moe == "moe_ffn"),
                *rope_notes(graph.config),
                *_backend_notes(self.et_backend),
            ),
            details=_Details(context, scratch, scratch_bytes),
            base_memory_bytes=base_memory_bytes(tensors, policy.class_name),
        )

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """Groups of any size or 8 bits by row; experts that one operator takes stay as it takes them."""
        return mixable(tensor.encoding.name)

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        refuse_missing(self.et_backend)
        with needs_extra(self.extra, "the executorch target"):
            for package in self.packages:
                version(package)
            from .operators import refuse_old_executorch
        if self.et_moe == "moe_ffn":
            refuse_old_executorch(version("executorch"))
        if graph.tokenizer is not None:
            check_tokenizer(followed(graph.tokenizer))
        scratch = folder / plan.details.scratch
        prepare_file(scratch, header=b"", n_bytes=plan.details.scratch_bytes)
        write_tensors(plan.tensors, folder, run)
        with needs_extra(self.extra, "the executorch target"):  # after the weights: torch holds more than they take
            from .constants import Constants
            from .lowering import write_pte
        constants = Constants(plan.tensors, folder)
        metadata = _metadata(graph, plan.details.context)
        paths = [folder / file.path for file in plan.files]
        with run.profile.stage("lower"):
            write_pte(graph, constants, paths, context=plan.details.context, metadata=metadata, backend=self.et_backend)
        scratch.unlink()

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        read = None if graph.tokenizer is None else followed(graph.tokenizer)
        return {CONFIG_FILE: json_bytes(base_config(graph)), **common_files(replace(graph, tokenizer=read))}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def longest_text(self, artifact: Artifact, config: ModelConfig) -> int:
        with needs_extra(self.extra, "reading a .pte"):
            from .reader import read_number
        return min(config.context_length, read_number(artifact.path, CONTEXT_METHOD) or config.context_length)

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        if artifact.is_recognised:
            raise NotJudged("a .pte does not say which of its constants is which weight")
        refuse_running(_backend(artifact))
        with needs_extra(self.extra, "reading a .pte"):
            from .reader import read_weights
        graph = open_graph(artifact.folder, weights=False)
        written = self.as_written(artifact)
        tensors = written.plan(graph, written.base_of(artifact.quant)).tensors
        return read_weights(artifact.path, tensors, data=_data_file(artifact))

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        refuse_running(_backend(artifact))
        with needs_extra(self.extra, "running a .pte"):
            from .runner import ExecutorchRunner

            return ExecutorchRunner(artifact.path, threads=threads, data=_data_file(artifact))


def _backend(artifact: Artifact) -> str:
    return str(artifact.options.get("et_backend", XNNPACK))


def _data_file(artifact: Artifact) -> Path | None:
    """The file of weights beside a program, if it has one."""
    return next((file for file in artifact.files if file.suffix == DATA_SUFFIX), None)


def _metadata(graph: WeightGraph, context: int) -> dict[str, Any]:
    """The constant methods that the LLM runner and its wrappers ask a file for.

    The runner stops at get_eos_ids and, where a file has them, nowhere else: not at the tokenizer's own token.
    get_max_seq_len equals the context: were it less, the runner would take the model for one with a sliding
    window and never stop at the end of the cache. Source: executorch `extension/llm/runner/llm_runner_helper.cpp`.
    """
    config = graph.config
    found: dict[str, Any] = {
        "get_max_seq_len": context,
        CONTEXT_METHOD: context,
        "get_vocab_size": config.vocab_size,
        "get_n_layers": config.n_layers,
        "use_kv_cache": True,
        "use_sdpa_with_kv_cache": True,
        "enable_dynamic_shape": True,
    }
    if config.bos_token_id is not None:
        found["get_bos_id"] = config.bos_token_id
    if graph.stop_ids:
        found["get_eos_ids"] = list(graph.stop_ids)
    return found


def _notes(graph: WeightGraph, context: int, *, is_float: bool, is_fused: bool) -> tuple[str, ...]:
    libraries = ["xnnpack_backend", "optimized_native_cpu_ops_lib", "custom_ops (LLM)"]
    if not is_float:
        libraries.append("quantized_ops_lib")
    notes = [f"context {context}; an app links {', '.join(libraries)}"]
    if is_fused:
        notes.append(f"needs executorch {MINIMUM_RUNTIME} or newer: its custom_ops have {OPERATOR}")
    if graph.tokenizer is None:
        notes.append("the checkpoint has no tokenizer.json, which the LLM runner needs beside the file")
    elif graph.tokenizer.is_composed:
        notes.append(COMPOSED_NOTE)
    return tuple(notes)


def _backend_notes(name: str) -> tuple[str, ...]:
    """What a file for another delegate is; its size is planned as XNNPACK's."""
    if name == XNNPACK:
        return ()
    found = BACKENDS[name]
    return (
        f"{found.title} computes projections, feed-forwards and rotations, runs on {found.runs_on}, and is not run here; "
        f"an app links {found.library}, too",
        "on the CPU: token table, mean squares, caches, attention, experts and their router",
        f"{found.title} packs weights in its own way, so that the file is not of exactly the planned size",
    )


TARGET = ExecutorchTarget()
