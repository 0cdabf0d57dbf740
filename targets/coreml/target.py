"""The Core ML target: .mlpackages that iOS 18, macOS 15 and later load, with their tokenizer beside them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ...graph.blocks import ShortConv
from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.errors import UsageError, needs_extra
from ...graph.graph import WeightGraph
from ...graph.roles import Address
from ...graph.tensor import TensorView
from ...graph.units import format_size
from ...quantize.policies.coreml import POLICIES, mixable
from ...quantize.policy import Policy
from ..cache_length import DEFAULT_CONTEXT, choose_context, rope_notes
from ..hub_folder import base_config, common_files, json_bytes
from ..naming import fit_name, part_name
from ..options import option
from ..plans import FilePlan, Plan, TensorPlan
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, Runner, Target, named_stem
from .caches import lay_out
from .evaluator.package import MANIFEST, open_package
from .mil import Dtype
from .model import build
from .package import MODEL, MODEL_CONFIG, SUFFIX, WEIGHTS, manifest, metadata, model_config
from .piece import Piece
from .reader import listed_constants, read_weights
from .recognise import context_of, packages_of, recognise
from .refusals import refuse_blocks
from .splitting import cut
from .store import WeightStore

_DEFAULT_CHUNK = 64
# Beyond this iPhones were seen to refuse a file of weights. Source: docs/coreml.md.
_PHONE_BYTES, _PHONE_SPLIT = 1_000_000_000, "1GB"
# Where the convolutions' windows lie between calls.
STATES = ("kv", "all")


@dataclass(frozen=True)
class _Details:
    """Of a plan: the packages' names, the files that are no weights, and the records of each weight.bin by their offset."""

    packages: Mapping[str, Piece]
    small: Mapping[str, bytes]
    records: Mapping[str, Sequence[tuple[int, bytes]]]


@dataclass(frozen=True)
class CoremlTarget(Target):
    """Two functions, one token and one chunk, that share their weights and a state of keys and values.

    `context` is the number of positions the state holds, `chunk` that of a prefill. `coreml_state` is one of `STATES`.
    `coreml_split` is the most bytes of weights that a package holds: beyond it the layers to come are another's.
    `outfile` is the package's name.
    """

    name = "coreml"
    title = "Core ML (iOS, macOS)"
    extra = "coreml"
    packages = ("coremltools",)
    policies = POLICIES
    default_quant = "int4"
    auto_base = "int4"
    file_suffix = SUFFIX
    is_package = True
    arithmetic = "float16"

    context: int | None = option(None, help=f"positions that the caches hold; default: {DEFAULT_CONTEXT}")
    chunk: int = option(_DEFAULT_CHUNK, help="tokens that a prefill reads at once", least=2)
    coreml_state: str = option(
        STATES[0],
        help="states: keys and values, or all, which the Neural Engine does not take, and no inputs in their place",
        choices=STATES,
    )
    coreml_split: int | None = option(
        None, help="start a new package of layers beyond this, like 1GB", metavar="SIZE", least=1, is_size=True
    )
    outfile: str | None = option(None, help="name of the file", is_asked=False)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.mixed(self.policy(quant))
        label = self.labelled(policy.name)
        refuse_blocks(graph.config)
        pieces = self._pieces(graph, policy)
        stem = named_stem(self.outfile, SUFFIX, label, fit_name(graph.name, self.ending(graph, policy.name)))
        packages = {part_name(stem, piece.number, piece.count, SUFFIX): piece for piece in pieces}
        stores = {name: WeightStore(policy, f"{name}/{WEIGHTS}") for name in packages}
        small: dict[str, bytes] = {}
        for name, piece in packages.items():
            small[f"{name}/{MANIFEST}"] = manifest()
            small[f"{name}/{MODEL}"] = build(piece, stores[name], metadata(piece, label))
        weights = [store.file() for store in stores.values()]
        return Plan(
            target=self.name,
            quant=label,
            class_name=policy.class_name,
            main_file=next(iter(small)),
            files=(*(FilePlan(path, len(data)) for path, data in small.items()), *weights),
            tensors=tuple(tensor for store in stores.values() for tensor in store.tensors),
            tensor_bytes=sum(file.nbytes for file in weights),
            fallbacks=tuple(fallback for store in stores.values() for fallback in store.fallbacks),
            notes=_notes(pieces, max(file.nbytes for file in weights)),
            details=_Details(packages, small, {store.path: tuple(store.records()) for store in stores.values()}),
        )

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        return mixable(tensor.encoding.name)

    def _pieces(self, graph: WeightGraph, policy: Policy) -> Sequence[Piece]:
        """What each package holds.

        Raises: UsageError for a context that the model was not made for, a chunk that it does not hold, or packages
        that are too small for a layer.
        """
        context = choose_context(graph.config, self.context)
        if self.chunk > context:
            raise UsageError(f"--chunk {self.chunk}: expected at most the context, {context}")

        def make(layers: range) -> Piece:
            caches = lay_out(graph.config, layers, context=context, chunk=self.chunk)
            return Piece(graph=graph, layers=layers, caches=caches, all_states=self.coreml_state == STATES[1])

        def size_of(piece: Piece) -> int:
            store = WeightStore(policy, WEIGHTS)
            build(piece, store, {})
            return store.file().nbytes

        return cut(make, size_of, len(graph.layers), self.coreml_split)

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        details: _Details = plan.details
        for path, data in details.small.items():
            prepare_file(folder / path, header=data, n_bytes=len(data))
        for file in plan.files:
            if file.path in details.records:
                prepare_file(folder / file.path, header=b"", n_bytes=file.nbytes)
                _write_records(folder / file.path, details.records[file.path])
        write_tensors(plan.tensors, folder, run)
        if self.missing() is not None:
            run.note("the package was not looked through: coremltools, whose schema that takes, is not installed")
            return
        from .structure import check_packages

        for note in check_packages([folder / name for name in details.packages]):
            run.note(note)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        packages = {}
        for each in artifacts:
            for name, piece in self._named_pieces(graph, each).items():
                packages[name] = piece, each.quant
        config = {CONFIG_FILE: json_bytes(base_config(graph)), MODEL_CONFIG: model_config(graph, packages)}
        return {**config, **common_files(graph)}

    def _named_pieces(self, graph: WeightGraph, artifact: Plan | Artifact) -> Mapping[str, Piece]:
        """What each package of an artifact holds, by the package's name."""
        if isinstance(artifact, Plan):
            details: _Details = artifact.details
            return details.packages
        written = CoremlTarget().as_written(artifact)
        pieces = written._pieces(graph, written.mixed(written.policy(written.base_of(artifact.quant))))
        return {package.name: piece for package, piece in zip(packages_of(artifact), pieces, strict=True)}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        return [each for package in packages_of(artifact) for each in listed_constants(open_package(package))]

    def longest_text(self, artifact: Artifact, config: ModelConfig) -> int:
        return min([config.context_length, *filter(None, map(context_of, packages_of(artifact)))])

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(packages_of(artifact))

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        with needs_extra(self.extra, "running a package"):
            from .runner import CoremlRunner
            from .structure import check_packages

            packages = packages_of(artifact)
            check_packages(packages)
            return CoremlRunner(*packages, threads=threads)


def _write_records(path: Path, records: Iterable[tuple[int, bytes]]) -> None:
    with path.open("r+b") as file:
        for offset, record in records:
            file.seek(offset)
            file.write(record)


def _notes(pieces: Sequence[Piece], n_bytes: int) -> tuple[str, ...]:
    """What a reader of the manifest must know of devices; `n_bytes` are the weights of the largest package. The sizes are
    those that apps were seen to fail beyond.
    """
    graph, caches = pieces[0].graph, pieces[0].caches
    notes = [f"context {caches.context}, prefill by {caches.chunk}; needs iOS 18 or macOS 15"]
    if len(pieces) > 1:
        notes.append(f"{len(pieces)} packages that are run in turn, each with states of its own")
    if len(pieces) > 1 and graph.is_tied:
        notes.append("the token table is stored in the first package and, as the head, in the last")
    if pieces[0].all_states and graph.config.of_kind(ShortConv):
        notes.append("two states: for CPU and GPU, since the Neural Engine fails to run a function of two")
    if n_bytes > _PHONE_BYTES:
        size = format_size(_PHONE_BYTES)
        notes.append(f"weights of more than {size} in one package: too large for phones; --coreml-split {_PHONE_SPLIT}")
    if graph.config.is_mixture:
        notes.append("decode gathers the chosen experts of compressed constants; prefill runs all experts")
    if graph.tokenizer is None:
        notes.append("the checkpoint has no tokenizer.json, which an app needs beside the package")
    if pieces[0].stream is Dtype.FLOAT32:
        notes.append("the residual stream is float32: embeddings are scaled, and sums may leave float16")
    return (*notes, *rope_notes(graph.config))


TARGET = CoremlTarget()
