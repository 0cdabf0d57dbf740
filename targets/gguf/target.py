"""GGUF: one file that llama.cpp and what is built on it (LM Studio, Ollama, …) run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ...graph.graph import WeightGraph
from ...graph.roles import Address, Role
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding
from ...quantize.gguf_file.header import KeyValue, aligned, boolean, string
from ...quantize.gguf_file.reader import read_gguf
from ...quantize.gguf_file.tensor_names import gguf_names
from ...quantize.imatrix import ImportanceMatrix, read_importance
from ...quantize.policies.gguf import FLOATS, POLICIES, gguf_policy, mixable
from ...quantize.policy import Policy
from ..options import imatrix_option, option, refine_option
from ..plans import Fallback, FilePlan, Plan, TensorPlan
from ..running import RunMemory
from ..stream import Execution, prepare_file, write_tensors
from ..target import Artifact, ListedTensor, Runner, Target, named_stem
from .choices import Choices, Chosen, type_name, type_rules
from .file_names import file_stem
from .metadata import REFINED_KEY, SOURCE_KEY, metadata, overridden
from .reader import longer_than, read_weights
from .recognise import listed, recognise
from .ropes import rope_of
from .running import run_memory
from .shards import lay_out
from .source import open_source
from .stored import Stored, converter_order, quantizer_order, stored_tensors
from .vocab import stop_notes, text_notes

_REFINED = (
    "refined: a longer search finds scales and levels of lower error in the same format; where it does, the bytes are "
    "not llama-quantize's"
)


@dataclass(frozen=True)
class GgufTarget(Target):
    """Writes the file that llama.cpp's converter and quantizer would, in one pass.

    Options have llama.cpp's meaning: `imatrix` is a file, `tensor_type` holds `ROLE_OR_REGEX=TYPE` and `metadata`
    `KEY=VALUE` texts, `pre` names a pre-tokenizer, `split_max_size` is in bytes. `refine` is ours: the same formats
    with scales of lower error. `outfile` is the file's name, where it is not to be the converter's.
    """

    name = "gguf"
    title = "GGUF (llama.cpp)"
    extra = "gguf"
    policies = POLICIES
    default_quant = "Q4_0"
    auto_base = "Q4_K_M"
    file_suffix = ".gguf"
    gives_vectors = True

    imatrix: str | None = imatrix_option()
    pure: bool = option(False, help="every matrix in the quant's own type, no mixture")
    token_embedding_type: str | None = option(None, help="type of the embedding", metavar="TYPE")
    output_tensor_type: str | None = option(None, help="type of the head", metavar="TYPE")
    tensor_type: tuple[str, ...] = option((), help="type of tensors, first wins", metavar="ROLE_OR_REGEX=TYPE")
    metadata: tuple[str, ...] = option((), help="overrides a pair", metavar="KEY=VALUE")
    pre: str | None = option(None, help="name of the pre-tokenizer in llama.cpp", metavar="NAME")
    split_max_size: int | None = option(
        None, help="start a new file beyond this, like 2GB", metavar="SIZE", least=1, is_size=True
    )
    refine: bool = refine_option()
    outfile: str | None = option(None, help="name of the file", is_asked=False)

    def run_memory(self, quant: str, tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
        return run_memory(tensors, size_bytes)

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        name = self.policy(quant).name
        is_float = name in FLOATS
        stored = stored_tensors(graph)
        importance = self._importance(graph, stored, is_float=is_float)
        tensors = [
            _weighed(each, importance) for each in self._choose(graph, name, stored, is_weighed=bool(importance))
        ]
        pairs = metadata(graph, stored, name, quantized=not is_float, pre=self.pre)
        is_refined = any(tensor.encoding.is_refined for tensor in tensors)
        ours = [*(importance.metadata() if importance else ()), *_told(graph, is_refined=is_refined)]
        pairs = overridden([*pairs, *ours], self.metadata)
        label = self.labelled(name)
        stem = file_stem(pairs, self.ending(graph, name), refined=is_refined)
        stem = named_stem(self.outfile, self.file_suffix, label, stem)
        shards = lay_out(stem, pairs, tensors, max_bytes=self.split_max_size)
        places = {name: (shard.path, offset) for shard in shards for name, offset in shard.offsets.items()}
        return Plan(
            target=self.name,
            quant=label,
            class_name=self.policy(name).class_name,
            main_file=shards[0].path,
            files=tuple(FilePlan(shard.path, shard.nbytes) for shard in shards),
            tensors=tuple(tensor.placed(*places[tensor.name]) for tensor in tensors),
            tensor_bytes=sum(shard.data_bytes for shard in shards),
            fallbacks=tuple(
                Fallback(each.name, each.choice.wanted, each.encoding.stored_name, each.choice.reason)
                for each in tensors
                if each.choice.reason
            ),
            notes=(
                *_notes(graph),
                *text_notes(graph, pre=self.pre),
                *stop_notes(graph),
                *((_REFINED,) if is_refined else ()),
                *self._option_notes(is_float=is_float),
                *(_importance_notes(importance, tensors) if importance else ()),
            ),
            details={shard.path: shard.header for shard in shards},
        )

    def _importance(self, graph: WeightGraph, stored: Sequence[Stored], *, is_float: bool) -> ImportanceMatrix | None:
        """What the options give, unless a float quant has no use for it."""
        if self.imatrix is None or is_float:
            return None
        found = read_importance(Path(self.imatrix), graph.config.family)
        found.refuse_foreign((each.role, each.layer) for each in stored if each.role is not None)
        return found

    def _choose(
        self, graph: WeightGraph, quant: str, stored: Sequence[Stored], *, is_weighed: bool
    ) -> Iterable[Chosen]:
        """The type of each tensor, in the order of the file."""
        mixture = gguf_policy(quant, graph.config, has_importance=is_weighed, pure=self.pure)
        chooser = self._chooser(graph, mixture, stored)
        order, family = converter_order if quant in FLOATS else quantizer_order, graph.config.family
        for tensor in sorted(stored, key=lambda each: order(each, family)):
            choice = chooser.of(tensor)
            encoding = choice.encoding.refined() if self.refine else choice.encoding
            yield Chosen(tensor, replace(choice, encoding=encoding))

    def _chooser(self, graph: WeightGraph, mixture: Policy, stored: Iterable[Stored]) -> Choices:
        return Choices(
            mixture=mixture,
            is_tied=graph.is_tied,
            is_pure=self.pure,
            rules=type_rules(self.tensor_type, stored),
            token_embedding_type=self.token_embedding_type and type_name(self.token_embedding_type),
            output_tensor_type=self.output_tensor_type and type_name(self.output_tensor_type),
            allotted=self.allotment.encodings if self.allotment else {},
        )

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """Any type, unless the quant keeps it in float32 or an option says which."""
        chooser = self._chooser(graph, self.policy(self.auto_base), stored_tensors(graph))
        if self.pure or tensor.encoding.name == "F32" or chooser.is_asked(tensor):
            return ()
        return mixable(tensor.view.n_cols)

    def stored_bytes(self, encoding: Encoding, tensor: TensorPlan) -> int:
        return aligned(encoding.nbytes(tensor.view.shape))

    def _option_notes(self, *, is_float: bool) -> tuple[str, ...]:
        if is_float and (self.imatrix is not None or self.tensor_type):
            return ("--imatrix and --tensor-type do not apply to float quants, as in llama-quantize",)
        return ()

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for planned in plan.files:
            prepare_file(folder / planned.path, header=plan.details[planned.path], n_bytes=planned.nbytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {} if graph.assets.license is None else {"LICENSE": graph.assets.license}

    def recognise(self, path: Path) -> Sequence[Artifact]:
        return recognise(path)

    def open(self, path: Path, *, name: str | None = None) -> WeightGraph | None:
        return open_source(path, name=name)

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        return listed(artifact)

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        return read_weights(artifact.files)

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        found = {path: read_gguf(path) for path in artifact.files}  # a damaged file is refused here, in a sentence
        architecture = found[artifact.path].metadata.get("general.architecture")
        from .runtimes import open_runner

        opened = open_runner(artifact, str(architecture), threads=threads)
        opened.longer_than = longer_than(list(found.values()))
        return opened

    def missing(self) -> str | None:
        from .runtimes import missing

        return missing()


def _told(graph: WeightGraph, *, is_refined: bool) -> Iterable[KeyValue]:
    """What readers of the file alone should know of how it was made."""
    if is_refined:
        yield boolean(REFINED_KEY, True)
    if graph.quantised_as is not None:
        yield string(SOURCE_KEY, graph.quantised_as)


def _weighed(chosen: Chosen, importance: ImportanceMatrix | None) -> Chosen:
    """With the importance of its columns, if there is any and it matters."""
    tensor = chosen.tensor
    if importance is None or tensor.role is None or not chosen.encoding.weighs_columns:
        return chosen
    return replace(chosen, importance=importance.of_weight((tensor.role, tensor.layer), tensor.view.shape))


def _importance_notes(importance: ImportanceMatrix, tensors: Sequence[Chosen]) -> tuple[str, ...]:
    weighing = [each for each in tensors if each.encoding.weighs_columns]
    shapes = {
        (each.tensor.role, each.tensor.layer): each.view.shape
        for each in weighing
        if each.tensor.role is not None and each.importance is not None
    }
    return importance.notes(shapes, [each.name for each in weighing if each.importance is None])


def _notes(graph: WeightGraph) -> tuple[str, ...]:
    notes, mixture = [], graph.config.mixture
    if graph.tokenizer is None:
        notes.append("the checkpoint has no tokenizer.json: the file holds no vocabulary and takes token ids only")
    if mixture and mixture.scaling != 1.0:
        notes.append(f"routed_scaling_factor {mixture.scaling} is multiplied into the experts' down projections")
    rope = rope_of(graph.config)
    if rope and rope.long:
        notes.append(
            f"llama.cpp turns every position by the table for long texts wherever its context is larger than "
            f"{rope.long.longer_than} tokens: for shorter texts choose one that is not (-c {rope.long.longer_than})"
        )
    if mixture and not mixture.has_bias and Role.EXPERT_BIAS in gguf_names(graph.config.family).demands:
        notes.append("the model has no expert biases: zeros are stored, which llama.cpp demands")
    return tuple(notes)


TARGET = GgufTarget()
