"""GGUF: one file that llama.cpp and what is built on it (LM Studio, Ollama, …) run."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...convert.errors import InputError
from ...convert.model.dtypes import Float32
from ...convert.model.graph import Role, Weight, WeightGraph
from ...convert.model.tensor import ScaledTensor, TensorView
from ...convert.plans import Fallback, FilePlan, Placement, Plan, TensorPlan
from ...convert.stream import Execution, write_tensors
from ...quantize.encoding import Encoding, get_encoding
from ...quantize.encodings._blocks import BlockEncoding, refined, stored_type
from ...quantize.policies.gguf import FLOATS, POLICIES, gguf_policy
from ...quantize.policy import Choice
from ..encoded import EncodedTensor, StoredPart
from ..target import Address, Artifact, Runner, Target
from .choices import Choices, type_name, type_rules
from .header import boolean
from .imatrix import ImportanceMatrix, read_importance
from .metadata import FOLDED_SCALE_KEY, REFINED_KEY, metadata, overridden
from .names import converter_order, quantizer_order, tensor_address, tensor_name
from .naming import file_stem
from .reader import read_gguf
from .runner import LlamaRunner, missing
from .shards import Shard, lay_out
from .weights import stored_weights

# Encodings that weigh columns by importance; the others give the same bytes with and without.
_WEIGHING = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS"}
_REFINED = (
    "refined: a longer search finds scales and levels of lower error in the same format; where it does, the bytes are "
    "not llama-quantize's"
)


@dataclass(frozen=True)
class GgufTarget(Target):
    """Writes the file that llama.cpp's converter and quantizer would, in one pass.

    Options have llama.cpp's meaning: `imatrix` is a file, `tensor_type` holds `ROLE_OR_REGEX=TYPE` and `metadata`
    `KEY=VALUE` texts, `pre` names a pre-tokenizer, `split_max_size` is in bytes. `refine` is ours: the same formats
    with scales of lower error.
    """

    name = "gguf"
    title = "GGUF (llama.cpp)"
    extra = "gguf"
    policies = POLICIES
    default_quant = "Q4_0"

    imatrix: str | None = field(default=None, metadata={"is_file": True})
    pure: bool = False
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    tensor_type: tuple[str, ...] = ()
    metadata: tuple[str, ...] = ()
    pre: str | None = None
    split_max_size: int | None = None
    refine: bool = False

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        name = self.policy(quant).name
        is_float = name in FLOATS
        importance = read_importance(Path(self.imatrix)) if self.imatrix and not is_float else None
        stored = stored_weights(graph)
        choices = self._choose(graph, name, stored, has_importance=importance is not None)
        columns = _columns(stored, choices, importance)
        pairs = metadata(graph, stored.values(), name, quantized=not is_float, pre=self.pre)
        is_refined = any(_is_refined(choice.encoding) for choice in choices.values())
        ours = [*(importance.metadata() if importance else ()), *([boolean(REFINED_KEY, True)] if is_refined else ())]
        pairs = overridden([*pairs, *ours], self.metadata)
        stem = file_stem(pairs, name, refined=is_refined)
        shards = lay_out(stem, pairs, stored, choices, max_bytes=self.split_max_size)
        return Plan(
            target=self.name,
            quant=name,
            class_name=self.policy(name).class_name,
            main_file=shards[0].path,
            files=tuple(FilePlan(shard.path, shard.nbytes) for shard in shards),
            tensors=_tensor_plans(shards, stored, choices, columns),
            tensor_bytes=sum(shard.data_bytes for shard in shards),
            fallbacks=tuple(
                Fallback(tensor_name(address), choice.wanted, stored_type(choice.encoding), choice.reason)
                for address, choice in choices.items()
                if choice.reason
            ),
            notes=(
                *_notes(graph),
                *((_REFINED,) if is_refined else ()),
                *self._notes(importance, choices, columns, is_float=is_float),
            ),
            details={shard.path: shard.header for shard in shards},
        )

    def _choose(
        self, graph: WeightGraph, quant: str, stored: dict[Address, Weight], *, has_importance: bool
    ) -> dict[Address, Choice]:
        """The type of each tensor, in the order of the file."""
        chooser = Choices(
            mixture=gguf_policy(quant, graph.config, has_importance=has_importance, pure=self.pure),
            is_tied=graph.is_tied,
            is_pure=self.pure,
            rules=type_rules(self.tensor_type, stored.values()),
            token_embedding_type=self.token_embedding_type and type_name(self.token_embedding_type),
            output_tensor_type=self.output_tensor_type and type_name(self.output_tensor_type),
        )
        order = sorted(stored, key=converter_order if quant in FLOATS else quantizer_order)
        chosen = {address: chooser.of(stored[address]) for address in order}
        if self.refine:
            return {address: replace(choice, encoding=refined(choice.encoding)) for address, choice in chosen.items()}
        return chosen

    def _notes(
        self,
        importance: ImportanceMatrix | None,
        choices: dict[Address, Choice],
        columns: dict[Address, Float32],
        *,
        is_float: bool,
    ) -> list[str]:
        notes = []
        if is_float and (self.imatrix or self.tensor_type):
            notes.append("--imatrix and --tensor-type do not apply to float quants, as in llama-quantize")
        if importance is None:
            return notes
        without = [
            tensor_name(address)
            for address, choice in choices.items()
            if _weighs(choice.encoding) and address not in columns
        ]
        if without:
            notes.append(f"{importance.path} has no importance of {', '.join(without)}: all columns count the same")
        for name, experts in importance.never_hit.items():
            listed = ", ".join(map(str, experts))
            notes.append(f"{importance.path}: no token reached experts {listed} of {name}: all columns count the same")
        return notes

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        for planned in plan.files:
            with (folder / planned.path).open("wb") as file:
                file.write(plan.details[planned.path])
                file.truncate(planned.nbytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {"LICENSE": graph.assets.license.encode()} if graph.assets.license else {}

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        weights: dict[Address, TensorView] = {}
        folded = 1.0
        for path in artifact.files:
            found = read_gguf(path)
            folded = found.metadata.get(FOLDED_SCALE_KEY, folded)
            for info in found.tensors:
                address = tensor_address(info.name)
                if address is None:
                    raise InputError(f"{path}: tensor '{info.name}' is not part of an LFM2 model")
                part = StoredPart(path, found.data_offset + info.offset)
                weights[address] = EncodedTensor(info.name, info.shape, get_encoding(info.encoding), (part,))
        if folded != 1.0:  # the model multiplies by the factor itself
            weights |= {a: ScaledTensor(v, 1 / folded) for a, v in weights.items() if a[0] is Role.EXPERT_DOWN}
        return weights

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        for path in artifact.files:
            read_gguf(path)  # a damaged file is refused here, in a sentence
        return LlamaRunner(artifact.path, threads=threads)

    def missing(self) -> str | None:
        return missing()


def _is_refined(encoding: Encoding) -> bool:
    return isinstance(encoding, BlockEncoding) and encoding.refined


def _weighs(encoding: Encoding) -> bool:
    """Whether importance makes a difference."""
    return _is_refined(encoding) or encoding.name in _WEIGHING


def _columns(
    stored: Mapping[Address, Weight], choices: Mapping[Address, Choice], importance: ImportanceMatrix | None
) -> dict[Address, Float32]:
    """Importance [experts, columns] of the tensors that have one and are stored so that it matters."""
    found: dict[Address, Float32] = {}
    for address, choice in choices.items():
        if importance is None or not _weighs(choice.encoding):
            continue
        values = importance.of_weight(address, stored[address].shape)
        if values is not None:
            found[address] = values
    return found


def _tensor_plans(
    shards: Iterable[Shard],
    stored: Mapping[Address, Weight],
    choices: Mapping[Address, Choice],
    columns: Mapping[Address, Float32],
) -> tuple[TensorPlan, ...]:
    return tuple(
        TensorPlan(
            name=tensor_name(address),
            role=address[0],
            layer=address[1],
            shape=stored[address].shape,
            encoding=choices[address].encoding,
            view=stored[address].view,
            placements=(Placement(shard.path, offset),),
            importance=columns.get(address),
        )
        for shard in shards
        for address, offset in shard.offsets.items()
    )


def _notes(graph: WeightGraph) -> tuple[str, ...]:
    notes = []
    moe = graph.config.moe
    if graph.tokenizer is None:
        notes.append("the checkpoint has no tokenizer.json: the file holds no vocabulary and takes token ids only")
    if moe and moe.routed_scaling_factor != 1.0:
        notes.append(
            f"routed_scaling_factor {moe.routed_scaling_factor} is multiplied into the experts' down projections"
        )
    if moe and not moe.use_expert_bias:
        notes.append("the model has no expert biases: zeros are stored, which llama.cpp demands")
    return tuple(notes)


TARGET = GgufTarget()
