"""The MLX target: a folder that mlx-lm, mlx-swift and LM Studio load, with the values mlx_lm.convert writes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.config import CONFIG_FILE
from ...graph.dtypes import DType, Float32, to_bfloat16, widen
from ...graph.errors import UsageError, needs_extra
from ...graph.families.family import MlxCan
from ...graph.graph import WeightGraph
from ...graph.roles import Address, Role
from ...graph.source.checkpoint import INDEX_FILE
from ...graph.source.config_file import load_config
from ...graph.tensor import TensorView
from ...quantize.encoding import get_encoding
from ...quantize.encodings.mlx_pack import GroupEncoding
from ...quantize.imatrix import ImportanceMatrix, read_importance
from ...quantize.policies.mlx import GRAMMAR, POLICIES, ROUTERS, MlxQuant, mixable, mlx_policy, parse_quant
from ...quantize.policy import Choice, Policy
from ..kept import KeptWeight
from ..naming import fit_name
from ..options import imatrix_option, option, refine_option
from ..plans import Fallback, FilePlan, Placement, Plan, TensorPlan
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, NotJudged, Runner, Target
from .casts import cast_weights
from .layout import Array, Shard, index_json, split, stored_arrays
from .package import config_fields, model_file, package_files
from .parameters import mlx_names, module_path, parameter_name
from .reader import read_weights
from .recognise import listed, recognise
from .refusals import refuse_inexpressible
from .ropes import rope_notes
from .source import open_source

_WEIGHED = "the search weighs columns by an importance matrix, where it has the tensor"
_REFINED = "refined: each group's scale is searched and its codes rounded against what is stored; not mlx_lm's values"
_UNKNOWN = (
    "mlx-lm 0.32 has no class for {model_type}: --mlx-model-file writes one beside the weights, which it runs if it is "
    "told to trust it"
)


@dataclass(frozen=True)
class _Stored:
    """One weight on its way into the folder."""

    name: str
    weight: KeptWeight
    choice: Choice
    arrays: tuple[Array, ...]


@dataclass(frozen=True)
class MlxTarget(Target):
    """Safetensors with packed weights. An artifact is a folder of its own, since file names are fixed."""

    name = "mlx"
    title = "MLX (mlx-lm, LM Studio)"
    extra = "mlx"
    packages = ("mlx", "mlx_lm")
    policies = POLICIES
    grammar = GRAMMAR
    default_quant = "8bit"
    auto_base = "4bit"
    arithmetic = "float32"
    weighs_refined_only = True

    refine: bool = refine_option()
    imatrix: str | None = imatrix_option()
    mlx_model_file: bool = option(False, help="write the model's class beside the weights, for an mlx-lm without one")

    def policy(self, quant: str) -> Policy:
        return mlx_policy(parse_quant(quant), DType.BF16)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        chosen = parse_quant(quant)
        importance = self._importance()
        is_released = mlx_names(graph.config.family).is_released
        refuse_inexpressible(graph, config_fields(graph.config))
        folder = fit_name(graph.name, self.ending(graph, chosen.name) + ("-refined" if self.refine else ""))
        weights = cast_weights(graph, to_bfloat16=chosen.matrices is None)
        stored = [self._store(graph, weight, chosen) for weight in weights]
        if importance is not None:
            importance.refuse_foreign(weight.address for weight in graph.weights())
        shards = split([each.arrays for each in stored])
        beside = self._model_file(graph, is_released=is_released)
        quantization = _quantization(chosen, stored, mlx_names(graph.config.family).wide)
        small = package_files(graph, title=folder, quant=chosen, quantization=quantization, beside=beside)
        small[INDEX_FILE] = index_json(shards, n_parameters=graph.n_parameters)
        sizes = {shard.name: shard.nbytes for shard in shards} | {name: len(data) for name, data in small.items()}
        return Plan(
            target=self.name,
            quant=self.labelled(chosen.name),
            class_name=chosen.class_name,
            main_file=f"{folder}/{CONFIG_FILE}",
            files=tuple(FilePlan(f"{folder}/{name}", n_bytes) for name, n_bytes in sizes.items()),
            tensors=_tensor_plans(folder, stored, shards, importance),
            tensor_bytes=sum(shard.nbytes - len(shard.header) for shard in shards),
            fallbacks=tuple(
                Fallback(each.name, each.choice.wanted, each.choice.encoding.name, each.choice.reason)
                for each in stored
                if each.choice.reason
            ),
            notes=(
                *((_REFINED,) if self.refine else ()),
                *rope_notes(graph.config),
                *_weighed_notes(importance, stored),
                *(() if is_released or beside else (_UNKNOWN.format(model_type=graph.config.model_type),)),
            ),
            details={shard.name: shard.header for shard in shards} | small,
        )

    def _importance(self) -> ImportanceMatrix | None:
        if self.imatrix is None:
            return None
        if not self.refine:
            raise UsageError("target mlx weighs by --imatrix only what --refine searches: give both, or neither")
        return read_importance(Path(self.imatrix))

    def _model_file(self, graph: WeightGraph, *, is_released: bool) -> dict[str, bytes]:
        if self.mlx_model_file and is_released:
            raise UsageError(f"--mlx-model-file: mlx-lm has a class for {graph.config.model_type}, which needs no file")
        return model_file(graph.config) if self.mlx_model_file else {}

    def _store(self, graph: WeightGraph, weight: KeptWeight, quant: MlxQuant) -> _Stored:
        packs = graph.quantised_as is None or weight.view.stored_as is not None
        wide = frozenset(mlx_names(graph.config.family).wide)
        policy = mlx_policy(quant, weight.view.dtype, refined=self.refine, packs_routers=packs, wide=wide)
        choice = self.mixed(policy).choose(weight)
        name = parameter_name(graph.config.family, weight.role, weight.layer)
        return _Stored(name, weight, choice, stored_arrays(name, weight.role, weight.shape, choice.encoding))

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """Any bits and groups, of what mlx-lm packs as the quant says."""
        is_packed = isinstance(tensor.encoding, GroupEncoding) and tensor.role is not None
        return mixable(tensor.view.dtype) if is_packed and tensor.role not in ROUTERS else ()

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for file in plan.files:
            path = folder / file.path
            prepare_file(path, header=plan.details[file.path.partition("/")[2]], n_bytes=file.nbytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def open(self, path: Path, *, name: str | None = None) -> WeightGraph | None:
        return open_source(path, name=name)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        return listed(artifact)

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(artifact.path.parent)

    def as_run(self, graph: WeightGraph) -> WeightGraph:
        """With the scale of embeddings that mlx-lm rounds to bfloat16, whatever it computes in, where its class does."""
        if MlxCan.ROOT_SCALE not in mlx_names(graph.config.family).can:
            return graph
        scale = np.array([graph.config.embedding_scale], np.float32)
        rounded = float(widen(to_bfloat16(scale), DType.BF16)[0])
        return replace(graph, config=replace(graph.config, embedding_scale=rounded))

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        folder = artifact.path.parent
        with suppress(NotJudged):
            read_weights(folder)  # a damaged folder is refused here, in a sentence
        is_released = mlx_names(load_config(folder).family).is_released
        with needs_extra(self.extra, "running an MLX artifact"):
            from .runner import MlxRunner

            return MlxRunner(folder, own_class=not is_released)


def _tensor_plans(
    folder: str, stored: list[_Stored], shards: list[Shard], importance: ImportanceMatrix | None
) -> tuple[TensorPlan, ...]:
    places = {name: Placement(f"{folder}/{shard.name}", at) for shard in shards for name, at in shard.offsets.items()}
    return tuple(
        TensorPlan(
            name=each.name,
            role=each.weight.role,
            layer=each.weight.layer,
            shape=each.weight.shape,
            encoding=each.choice.encoding,
            view=each.weight.view,
            placements=tuple(places[array.name] for array in each.arrays),
            importance=_columns(each, importance),
            others=each.weight.others,
        )
        for each in stored
    )


def _columns(each: _Stored, importance: ImportanceMatrix | None) -> Float32 | None:
    """Importance [experts, columns] of a matrix stored in groups, if there is any."""
    if importance is None or not each.choice.encoding.weighs_columns:
        return None
    return importance.of_weight(each.weight.address, each.weight.shape)


def _weighed_notes(importance: ImportanceMatrix | None, stored: list[_Stored]) -> tuple[str, ...]:
    if importance is None:
        return ()
    weighing = [each for each in stored if each.choice.encoding.weighs_columns]
    shapes = {each.weight.address: each.weight.shape for each in weighing}
    return (_WEIGHED, *importance.notes(shapes, [each.name for each in weighing if _columns(each, importance) is None]))


def _quantization(quant: MlxQuant, stored: list[_Stored], wide: Set[Role]) -> dict[str, Any]:
    """The config's `quantization`: what holds for most modules, then those that differ, and all that are wide."""
    if quant.matrices is None:
        return {}
    common = _settings(get_encoding(quant.matrices + "_bf16"))
    settings: dict[str, Any] = dict(common)
    for each in stored:
        own = _settings(each.choice.encoding)
        if own and (own != common or each.weight.role in wide):
            settings[module_path(each.name)] = own
    return settings


def _settings(encoding: object) -> dict[str, Any]:
    """What mlx-lm must know of a format; nothing of a plain float."""
    if not isinstance(encoding, GroupEncoding):
        return {}
    return {"group_size": encoding.block, "bits": encoding.bits, "mode": encoding.mode}


TARGET = MlxTarget()
