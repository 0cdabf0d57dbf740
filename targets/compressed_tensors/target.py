"""The compressed-tensors target: a checkpoint folder as llm-compressor writes it, for Transformers, vLLM and SGLang."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...graph.config import CONFIG_FILE
from ...graph.dtypes import DType
from ...graph.errors import needs_extra
from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS, Address, Role
from ...graph.source.checkpoint import INDEX_FILE
from ...graph.tensor import TensorView
from ...quantize.encodings.ct_fp4 import NvFp4
from ...quantize.encodings.ct_int import GroupInt
from ...quantize.policies.compressed_tensors import (
    ALIKE,
    GRAMMAR,
    POLICIES,
    ct_policy,
    mixable,
    parse_quant,
    writable_quant,
)
from ...quantize.policy import Policy
from ..naming import fit_name
from ..options import option
from ..plans import Fallback, FilePlan, Placement, Plan, TensorPlan
from ..running import RunMemory
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, NotJudged, Runner, Target
from .global_scales import Places, write_with_global_scales
from .layout import index_json, split
from .package import package_files
from .reader import read_weights
from .recognise import listed, recognise
from .refusals import decodes_first, refuse_inexpressible, refuse_unloadable
from .running import run_memory
from .stored import Stored, stored_weights

_SHARD_BYTES = 5_000_000_000
_NOT_SERVED = "vLLM and SGLang have no class for {model_type} yet: Transformers runs it"


@dataclass(frozen=True)
class _Details:
    """Of a plan: how each file begins, and where scales go that only the weights can tell."""

    headers: Mapping[str, bytes]
    global_scales: Places


@dataclass(frozen=True)
class CompressedTensorsTarget(Target):
    """Safetensors with packed weights. An artifact is a folder of its own, since file names are fixed.

    `max_shard_size` is that of transformers' `save_pretrained`.
    """

    name = "compressed-tensors"
    title = "Transformers, vLLM, SGLang"
    extra = "compressed-tensors"
    packages = ("torch", "transformers", "compressed_tensors")
    policies = POLICIES
    grammar = GRAMMAR
    default_quant = "W4A16"
    auto_base = "W4A16-g32"

    max_shard_size: int = option(
        _SHARD_BYTES, help="start a new file beyond this, like 2GB; default: 5GB", metavar="SIZE", least=1, is_size=True
    )

    def run_memory(self, quant: str, tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
        """What transformers holds on the CPU, where the first run leaves every weight in the type it is computed in."""
        return run_memory(tensors)

    def arithmetic_of(self, quant: str) -> str | None:
        return parse_quant(self.base_of(quant)).arithmetic

    def policy(self, quant: str) -> Policy:
        return ct_policy(writable_quant(quant), DType.BF16)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        chosen = writable_quant(quant)
        refuse_inexpressible(graph.config)
        folder = fit_name(graph.name, self.ending(graph, chosen.name))
        stored = stored_weights(graph, lambda dtype: self.mixed(ct_policy(chosen, dtype)))
        shards = split([each.runs for each in stored], max_bytes=self.max_shard_size)
        n_bytes = sum(run.nbytes for each in stored for run in each.runs)
        small = package_files(graph, title=folder, quant=chosen, stored=stored)
        if len(shards) > 1:
            small[INDEX_FILE] = index_json(shards, n_parameters=graph.n_parameters, n_bytes=n_bytes)
        places = {n: Placement(f"{folder}/{shard.name}", at) for shard in shards for n, at in shard.offsets.items()}
        sizes = {shard.name: shard.nbytes for shard in shards} | {name: len(data) for name, data in small.items()}
        return Plan(
            target=self.name,
            quant=self.labelled(chosen.name),
            class_name=chosen.class_name,
            main_file=f"{folder}/{CONFIG_FILE}",
            files=tuple(FilePlan(f"{folder}/{name}", n_bytes) for name, n_bytes in sizes.items()),
            tensors=_tensor_plans(stored, places),
            tensor_bytes=n_bytes,
            fallbacks=tuple(
                Fallback(each.name, each.choice.wanted, each.choice.encoding.name, each.choice.reason)
                for each in stored
                if each.choice.reason
            ),
            notes=() if graph.config.family.servers else (_NOT_SERVED.format(model_type=graph.config.model_type),),
            details=_Details({shard.name: shard.header for shard in shards} | small, _global_scales(stored, places)),
        )

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """Integers of either width and any group, which one config names module by module."""
        return mixable(tensor.view.dtype) if isinstance(tensor.encoding, GroupInt) else ()

    def stored_alike(self, role: Role, layer: int | None) -> Hashable:
        """What servers run as one product, and all experts."""
        roles = next((roles for roles in ALIKE if role in roles), role)
        return roles, None if roles is EXPERTS else layer

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for file in plan.files:
            header = plan.details.headers[file.path.partition("/")[2]]
            prepare_file(folder / file.path, header=header, n_bytes=file.nbytes)
        if plan.details.global_scales:
            write_with_global_scales(plan.tensors, plan.details.global_scales, folder, run)
        else:
            write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        return listed(artifact)

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(artifact.path.parent)

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        folder = artifact.path.parent
        try:
            weights = read_weights(folder)  # a damaged folder is refused here, in a sentence
        except NotJudged as error:
            weights = error.decoded
        refuse_unloadable(weights)
        with needs_extra(self.extra, "running a compressed-tensors artifact"):
            from .runner import TransformersRunner

            return TransformersRunner(folder, threads=threads, decodes_first=decodes_first(weights))


def _tensor_plans(stored: Sequence[Stored], places: Mapping[str, Placement]) -> tuple[TensorPlan, ...]:
    return tuple(
        TensorPlan(
            name=each.name,
            role=each.weight.role,
            layer=each.weight.layer,
            shape=each.weight.shape,
            encoding=each.choice.encoding,
            view=each.weight.view,
            placements=tuple(places[run.name] for run in each.runs if not run.is_constant),
            others=each.weight.others,
        )
        for each in stored
    )


def _global_scales(stored: Sequence[Stored], places: Mapping[str, Placement]) -> dict[Address, list[Placement]]:
    """Where the scales of whole matrices go; nothing of quants without."""
    return {
        each.weight.address: [places[array.name] for run in each.runs if run.is_constant for array in run.arrays]
        for each in stored
        if isinstance(each.choice.encoding, NvFp4)
    }


TARGET = CompressedTensorsTarget()
