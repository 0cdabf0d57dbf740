"""GGUF: one file that llama.cpp and what is built on it (LM Studio, Ollama, …) run."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from ...convert.errors import InputError
from ...convert.model.graph import Role, Weight, WeightGraph
from ...convert.model.tensor import TensorView
from ...convert.plans import Fallback, FilePlan, Placement, Plan, TensorPlan
from ...convert.stream import Execution, write_tensors
from ...quantize.encoding import get_encoding
from ...quantize.policies.gguf import POLICIES
from ...quantize.policy import Choice, Policy
from ..encoded import EncodedTensor, StoredPart
from ..target import Address, Artifact, Runner, Target
from .header import TensorInfo, aligned, header_bytes
from .metadata import metadata
from .names import converter_order, quantizer_order, tensor_address, tensor_name
from .reader import read_gguf
from .runner import LlamaRunner, missing
from .weights import stored_weights

_FLOATS = ("F32", "F16", "BF16")


class GgufTarget(Target):
    """Writes the file that llama.cpp's converter and quantizer would, in one pass."""

    name = "gguf"
    title = "GGUF (llama.cpp)"
    extra = "gguf"
    policies = POLICIES
    default_quant = "Q4_0"

    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        policy = self.policy(quant)
        quantized = policy.name not in _FLOATS
        stored = stored_weights(graph)
        order = sorted(stored, key=quantizer_order if quantized else converter_order)
        choices = {address: _choose(policy, graph, stored[address]) for address in order}
        infos, tensor_bytes = _lay_out(stored, choices)
        header = header_bytes(metadata(graph, stored.values(), policy.name, quantized=quantized), infos)
        path = f"{graph.name}-{policy.name}.gguf"
        return Plan(
            target=self.name,
            quant=policy.name,
            class_name=policy.class_name,
            main_file=path,
            files=(FilePlan(path, len(header) + tensor_bytes),),
            tensors=tuple(
                TensorPlan(
                    name=info.name,
                    role=address[0],
                    layer=address[1],
                    shape=info.shape,
                    encoding=choices[address].encoding,
                    view=stored[address].view,
                    placements=(Placement(path, len(header) + info.offset),),
                )
                for address, info in zip(order, infos, strict=True)
            ),
            tensor_bytes=tensor_bytes,
            fallbacks=tuple(
                Fallback(tensor_name(address), choice.wanted, choice.encoding.name, choice.reason)
                for address, choice in choices.items()
                if choice.reason
            ),
            notes=_notes(graph),
            details=header,
        )

    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        with (folder / plan.main_file).open("wb") as file:
            file.write(plan.details)
            file.truncate(plan.total_bytes)
        write_tensors(plan.tensors, folder, run)

    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        return {"LICENSE": graph.assets.license.encode()} if graph.assets.license else {}

    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        found = read_gguf(artifact.path)
        weights: dict[Address, TensorView] = {}
        for info in found.tensors:
            address = tensor_address(info.name)
            if address is None:
                raise InputError(f"{artifact.path}: tensor '{info.name}' is not part of an LFM2 model")
            part = StoredPart(artifact.path, found.data_offset + info.offset)
            weights[address] = EncodedTensor(info.name, info.shape, get_encoding(info.encoding), (part,))
        return weights

    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        read_gguf(artifact.path)  # a damaged file is refused here, in a sentence
        return LlamaRunner(artifact.path, threads=threads)

    def missing(self) -> str | None:
        return missing()


def _choose(policy: Policy, graph: WeightGraph, weight: Weight) -> Choice:
    """The policy's choice; a tied embedding is asked for as the head it also is."""
    if weight.role is Role.EMBED and graph.is_tied:
        weight = Weight(Role.LM_HEAD, None, weight.view)
    return policy.choose(weight)


def _lay_out(stored: dict[Address, Weight], choices: dict[Address, Choice]) -> tuple[list[TensorInfo], int]:
    """Header entries of the tensors in the order of `choices`, and the bytes they take with their padding."""
    infos, offset = [], 0
    for address, choice in choices.items():
        view = stored[address].view
        infos.append(TensorInfo(tensor_name(address), view.shape, choice.encoding.name, offset))
        offset += aligned(view.n_rows * choice.encoding.row_nbytes(view.n_cols))
    return infos, offset


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
