"""The MLX target: a folder that mlx-lm, mlx-swift and LM Studio load, with the values mlx_lm.convert writes."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...convert.errors import UsageError, needs_extra
from ...convert.model.checkpoint import INDEX_FILE
from ...convert.model.config import CONFIG_FILE
from ...convert.model.dtypes import Float32
from ...convert.model.graph import Role, Weight, WeightGraph
from ...convert.model.tensor import TensorView
from ...convert.plans import Fallback, FilePlan, Placement, Plan, TensorPlan
from ...convert.stream import Execution, write_tensors
from ...quantize.encoding import get_encoding
from ...quantize.encodings.mlx_pack import GroupEncoding
from ...quantize.policies.mlx import POLICIES, matrix_encoding, mlx_policy
from ...quantize.policy import Choice
from ..gguf.imatrix import ImportanceMatrix, read_importance
from ..target import Address, Artifact, Runner, Target
from .layout import Array, Shard, index_json, split, stored_arrays
from .names import module_path, parameter_name
from .package import package_files
from .reader import read_weights
from .weights import stored_weights

_WEIGHED = "the search weighs columns by an importance matrix, where it has the tensor"
_REFINED = "refined: each group's scale is searched and its codes rounded against what is stored; not mlx_lm's values"


@dataclass(frozen=True)
class _Stored:
    """One weight on its way into the folder."""

    name: str
    weight: Weight
    choice: Choice
    arrays: tuple[Array, ...]


@dataclass(frozen=True)
class MlxTarget(Target):
    """Safetensors with packed weights. An artifact is a folder of its own, since file names are fixed."""

    name = "mlx"
    title = "MLX (mlx-lm, LM Studio)"
    extra = "mlx"
    policies = POLICIES
    default_quant = "8bit"
    runs_in_float32 = True

    refine: bool = False
    imatrix: str | None = field(default=None, metadata={"is_file": True})

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.policy(quant)
        importance = self._importance()
        folder = f"{graph.name}-{policy.name}" + ("-refined" if self.refine else "")
        stored = [self._store(graph, weight, policy.name) for weight in stored_weights(graph, policy.name)]
        shards = split([each.arrays for each in stored])
        small = package_files(graph, title=folder, quant=policy.name, quantization=_quantization(policy.name, stored))
        small[INDEX_FILE] = index_json(shards, n_parameters=graph.n_parameters)
        sizes = {shard.name: shard.nbytes for shard in shards} | {name: len(data) for name, data in small.items()}
        return Plan(
            target=self.name,
            quant=policy.name,
            class_name=policy.class_name,
            main_file=f"{folder}/{CONFIG_FILE}",
            files=tuple(FilePlan(f"{folder}/{name}", n_bytes) for name, n_bytes in sizes.items()),
            tensors=_tensor_plans(folder, stored, shards, importance),
            tensor_bytes=sum(shard.nbytes - len(shard.header) for shard in shards),
            fallbacks=tuple(
                Fallback(each.name, each.choice.wanted, each.choice.encoding.name, each.choice.reason)
                for each in stored
                if each.choice.reason
            ),
            notes=((_REFINED,) if self.refine else ()) + ((_WEIGHED,) if importance else ()),
            details={shard.name: shard.header for shard in shards} | small,
        )

    def _importance(self) -> ImportanceMatrix | None:
        if self.imatrix is None:
            return None
        if not self.refine:
            raise UsageError("target mlx weighs by --imatrix only what --refine searches: give both, or neither")
        return read_importance(Path(self.imatrix))

    def _store(self, graph: WeightGraph, weight: Weight, quant: str) -> _Stored:
        choice = mlx_policy(quant, weight.view.dtype, refined=self.refine).choose(weight)
        name = parameter_name(weight.role, weight.layer, is_moe=graph.config.moe is not None)
        return _Stored(name, weight, choice, stored_arrays(name, weight.role, weight.shape, choice.encoding))

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for file in plan.files:
            path = folder / file.path
            path.parent.mkdir(exist_ok=True)
            with path.open("wb") as out:
                out.write(plan.details[path.name])
                out.flush()
                os.truncate(out.fileno(), file.nbytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {}

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(artifact.path.parent)

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        read_weights(artifact.path.parent)  # a damaged folder is refused here, in a sentence
        with needs_extra(self.extra, "running an MLX artifact"):
            from .runner import MlxRunner

            return MlxRunner(artifact.path.parent)

    def missing(self) -> str | None:
        absent = [name for name in ("mlx", "mlx_lm") if importlib.util.find_spec(name) is None]
        return f'pip install "lfm-convert[{self.extra}]"' if absent else None


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
        )
        for each in stored
    )


def _columns(each: _Stored, importance: ImportanceMatrix | None) -> Float32 | None:
    """Importance [experts, columns] of a matrix stored in groups, if there is any."""
    if importance is None or not isinstance(each.choice.encoding, GroupEncoding):
        return None
    return importance.of_weight((each.weight.role, each.weight.layer), each.weight.shape)


def _quantization(quant: str, stored: list[_Stored]) -> dict[str, Any]:
    """The config's `quantization`: what holds for most modules, then those that differ, and every router."""
    matrices = matrix_encoding(quant)
    if matrices is None:
        return {}
    common = _settings(get_encoding(matrices))
    settings: dict[str, Any] = dict(common)
    for each in stored:
        own = _settings(each.choice.encoding)
        if own and (own != common or each.weight.role is Role.ROUTER):
            settings[module_path(each.name)] = own
    return settings


def _settings(encoding: object) -> dict[str, Any]:
    """What mlx-lm must know of a format; nothing of a plain float."""
    if not isinstance(encoding, GroupEncoding):
        return {}
    return {"group_size": encoding.block, "bits": encoding.bits, "mode": encoding.mode}


TARGET = MlxTarget()
