"""The Core ML target: one .mlpackage that iOS 18, macOS 15 and later load, with its tokenizer beside it."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.errors import UsageError, needs_extra
from ...graph.graph import WeightGraph
from ...graph.roles import Address
from ...graph.tensor import TensorView
from ...graph.units import format_size
from ...quantize.policies.coreml import POLICIES
from ..hub_folder import base_config, common_files, json_bytes
from ..naming import fit_name
from ..options import option
from ..plans import FilePlan, Plan
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, Runner, Target, named_stem
from .caches import Caches, lay_out
from .evaluator.package import MANIFEST, open_package
from .model import build
from .package import MODEL, MODEL_CONFIG, SUFFIX, WEIGHTS, manifest, metadata, model_config
from .reader import listed_constants, read_weights
from .recognise import recognise
from .refusals import refuse_blocks
from .store import WeightStore

_DEFAULT_CONTEXT, _DEFAULT_CHUNK = 4096, 64
# Beyond this iPhones were seen to refuse a file of weights. Source: docs/coreml.md.
_PHONE_BYTES = 1_000_000_000
# Where the convolutions' windows lie between calls.
STATES = ("kv", "all")


@dataclass(frozen=True)
class _Details:
    """Of a plan: the files that are no weights, and the records of weight.bin by their offset."""

    small: dict[str, bytes]
    records: tuple[tuple[int, bytes], ...]


@dataclass(frozen=True)
class CoremlTarget(Target):
    """Two functions, one token and one chunk, that share their weights and a state of keys and values.

    `context` is the number of positions the state holds, `chunk` that of a prefill. `coreml_state` is one of `STATES`.
    `outfile` is the package's name.
    """

    name = "coreml"
    title = "Core ML (iOS, macOS)"
    extra = "coreml"
    policies = POLICIES
    default_quant = "int4"
    file_suffix = SUFFIX
    is_package = True
    arithmetic = "float16"

    context: int | None = option(None, help="positions that the caches hold; default: 4096")
    chunk: int = option(_DEFAULT_CHUNK, help="tokens that a prefill reads at once", least=2)
    coreml_state: str = option(
        STATES[0],
        help="states: keys and values, or all, which the Neural Engine does not take, and no inputs in their place",
        choices=STATES,
    )
    outfile: str | None = option(None, help="name of the file", is_asked=False)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.policy(quant)
        refuse_blocks(graph.config)
        caches = self._caches(graph.config)
        stem = named_stem(self.outfile, SUFFIX, policy.name, fit_name(graph.name, f"-{policy.name}"))
        folder = stem + SUFFIX
        store = WeightStore(policy, f"{folder}/{WEIGHTS}")
        said = metadata(graph, caches, policy.name)
        specification = build(graph, store, caches, all_states=self._all_states, metadata=said)
        small = {f"{folder}/{MANIFEST}": manifest(), f"{folder}/{MODEL}": specification}
        weights = store.file()
        return Plan(
            target=self.name,
            quant=policy.name,
            class_name=policy.class_name,
            main_file=f"{folder}/{MANIFEST}",
            files=(*(FilePlan(path, len(data)) for path, data in small.items()), weights),
            tensors=tuple(store.tensors),
            tensor_bytes=weights.nbytes,
            fallbacks=tuple(store.fallbacks),
            notes=_notes(graph, caches, weights.nbytes, all_states=self._all_states),
            details=_Details(small, tuple(store.records())),
        )

    @property
    def _all_states(self) -> bool:
        return self.coreml_state == STATES[1]

    def _caches(self, config: ModelConfig) -> Caches:
        """Raises UsageError for a context that the model was not made for, or a chunk that it does not hold."""
        context = _context(config, self.context)
        if self.chunk > context:
            raise UsageError(f"--chunk {self.chunk}: expected at most the context, {context}")
        return lay_out(config, context=context, chunk=self.chunk)

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for path, data in plan.details.small.items():
            prepare_file(folder / path, header=data, n_bytes=len(data))
        weights = plan.files[-1]
        prepare_file(folder / weights.path, header=b"", n_bytes=weights.nbytes)
        with (folder / weights.path).open("r+b") as file:
            for offset, record in plan.details.records:
                file.seek(offset)
                file.write(record)
        write_tensors(plan.tensors, folder, run)
        if self.missing() is None:
            from .structure import check_package

            for note in check_package((folder / plan.main_file).parent):
                run.note(note)
        else:
            run.note("the package was not looked through: coremltools, whose schema that takes, is not installed")

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        packages = {}
        for each in artifacts:
            path = each.main_file if isinstance(each, Plan) else each.path
            target = self if isinstance(each, Plan) else CoremlTarget().with_options(each.options)
            packages[Path(path).parent.name] = target._caches(graph.config), each.quant, target._all_states
        config = {CONFIG_FILE: json_bytes(base_config(graph)), MODEL_CONFIG: model_config(graph, packages)}
        return {**config, **common_files(graph)}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        return listed_constants(open_package(artifact.path.parent))

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(artifact.path.parent)

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        with needs_extra(self.extra, "running a package"):
            from .runner import CoremlRunner
            from .structure import check_package

            check_package(artifact.path.parent)
            return CoremlRunner(artifact.path.parent, threads=threads)

    def missing(self) -> str | None:
        return None if importlib.util.find_spec("coremltools") else f'pip install "lfm-convert[{self.extra}]"'


def _context(config: ModelConfig, wanted: int | None) -> int:
    """Raises UsageError for a context that the model was not made for, or that holds nothing."""
    if wanted is None:
        return min(_DEFAULT_CONTEXT, config.context_length)
    if not 2 <= wanted <= config.context_length:
        raise UsageError(f"--context {wanted}: expected 2 to {config.context_length}, the model's own length")
    return wanted


def _notes(graph: WeightGraph, caches: Caches, n_bytes: int, *, all_states: bool) -> tuple[str, ...]:
    """What a reader of the manifest must know of devices. The sizes are those that apps were seen to fail beyond."""
    notes = [f"context {caches.context}, prefill by {caches.chunk}; needs iOS 18 or macOS 15"]
    if all_states and caches.conv_state is not None:
        notes.append("two states: for CPU and GPU, since the Neural Engine fails to run a function of two")
    if n_bytes > _PHONE_BYTES:
        notes.append(f"weights of more than {format_size(_PHONE_BYTES)}: too large for phones to load as one package")
    if graph.config.is_mixture:
        notes.append("decode gathers the chosen experts of compressed constants; prefill runs all experts")
    if graph.tokenizer is None:
        notes.append("the checkpoint has no tokenizer.json, which an app needs beside the package")
    return tuple(notes)


TARGET = CoremlTarget()
