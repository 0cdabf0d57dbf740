"""What a target is: names, plan, write, read back, run. One folder per runtime, one line here each."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..graph.config import CONFIG_FILE, ModelConfig
from ..graph.dtypes import Float32
from ..graph.errors import ExitCode, LfmConvertError, UsageError
from ..graph.graph import WeightGraph
from ..graph.roles import Role, find_role
from ..graph.tensor import TensorView
from ..quantize.allotment.allotment import Allotment
from ..quantize.allotment.wanted import base_of, read_wanted
from ..quantize.encoding import Encoding
from ..quantize.policy import Policy, find_policy
from .options import changed, checked, statistics_option
from .plans import Plan, TensorPlan
from .running import RunMemory
from .stream import Execution

# The address of a weight: its role, and its layer (None outside the layers).
Address = tuple[Role, int | None]

# Main files that are called so in every artifact of their format: MLX folders, Core ML packages.
_ALIKE = (CONFIG_FILE, "Manifest.json")


@dataclass(frozen=True)
class Artifact:
    """One artifact on disk: what the manifest says of it, or, where none does, what its own files say.

    `path` is the file a runtime is pointed at; `folder` holds the manifest, `files` are all that belong to it. One that
    `is_recognised` has no manifest: whoever wrote it, no option, place or hash of it is known.
    """

    path: Path
    folder: Path
    target: str
    quant: str
    class_name: str
    files: tuple[Path, ...]
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)
    is_recognised: bool = False

    @property
    def label(self) -> str:
        """What reports call it: its main file, or the folder of one whose name is always the same.

        Of one without a manifest both, if it is an ONNX graph: writers call all of theirs alike.
        """
        if self.is_recognised and self.path.suffix == ".onnx":
            return f"{self.folder.absolute().name}/{self.path.relative_to(self.folder).as_posix()}"
        return self.path.parent.name if self.path.name in _ALIKE else self.path.name

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of each file by its path: as its manifest lists them, to which whoever found it has held them."""
        if not self.is_recognised and self.entry.get("files"):
            return {file["path"]: file["bytes"] for file in self.entry["files"]}
        return {file.relative_to(self.folder).as_posix(): file.stat().st_size for file in self.files}

    @property
    def size_bytes(self) -> int:
        return sum(self.sizes.values())

    @property
    def options(self) -> Mapping[str, Any]:
        """What its target was configured with."""
        return dict(self.entry.get("options", {}))


@dataclass(frozen=True)
class ListedTensor:
    """A tensor as a file of any writer names it, and what it is stored as. Units: bytes."""

    name: str
    encoding: str
    nbytes: int


class NotJudged(LfmConvertError):
    """Weights, some or all, are stored in a way that is not read here: of them nothing can be said, good or bad.

    `decoded` are those that could be read.
    """

    exit_code = ExitCode.BAD_INPUT

    def __init__(self, reason: str, decoded: Mapping[Address, TensorView] | None = None) -> None:
        super().__init__(reason)
        self.decoded = dict(decoded or {})


class Runner(ABC):
    """An artifact loaded in its real runtime, one conversation at a time."""

    @property
    @abstractmethod
    def backend(self) -> str:
        """Runtime, version and threads, as reports show it: `onnxruntime 1.31.1 CPU, 2 threads`."""

    @abstractmethod
    def extend(self, token_ids: Sequence[int]) -> Float32:
        """Continues the conversation; logits [n, V] of the given tokens."""

    @abstractmethod
    def reset(self) -> None:
        """Forgets the conversation."""

    def logits(self, token_ids: Sequence[int]) -> Float32:
        """Logits [n, V] of a prompt from an empty state."""
        self.reset()
        return self.extend(token_ids)

    def last_logits(self, token_ids: Sequence[int]) -> Float32:
        """Logits [V] of the last token of a prompt, which is read from an empty state as the runtime's clients read one:
        in one call, or in the runtime's own portions.
        """
        found: Float32 = self.logits(token_ids)[-1]
        return found

    def vectors(self, token_ids: Sequence[int]) -> Float32:
        """The vectors [m, D] of a text, of a model that gives these: one, or as many as it has tokens."""
        raise NotImplementedError

    def tokenize(self, text: str) -> list[int] | None:
        """Ids of a text by the runtime's own tokenizer, BOS first; None if it takes ids only."""
        return None

    def stops(self) -> Mapping[str, Sequence[int]]:
        """Ids at which a text ends, as the artifact's own files tell each of their readers; empty if none is told."""
        return {}

    def templates(self) -> Mapping[str, str]:
        """The chat templates inside the artifact by name, one of them `default`; empty if they lie beside it."""
        return {}

    def render(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[Mapping[str, Any]]
    ) -> list[str] | None:
        """Chats as the runtime's own template engine writes them; None if it leaves that to its clients."""
        return None

    def another(self) -> Runner | None:
        """A second conversation on the same loaded model, which closes with this one; None if there is only one."""
        return None

    # The ways in which `batch` lays prompts of different lengths side by side.
    batches: Sequence[str] = ()

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Logits [n, V] of prompts that are run together, each from an empty state, in one of the `batches` ways."""
        raise NotImplementedError

    @contextmanager
    def watching(self) -> Iterator[Callable[[int], dict[int, NDArray[np.int64]] | None]]:
        """While it is open, what it gives tells of the last n tokens which experts [n, top_k] each layer chose for them;
        None where the runtime does not show that in passing. It is opened and closed between conversations.
        """
        yield lambda n: None

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        """The experts [n, top_k] that each layer chose for a prompt; None if the runtime does not show them."""
        return None

    def expect(self, n_tokens: int) -> None:
        """Hears how long conversations will become, before the first: who needs room for one may make it at once."""
        return

    def close(self) -> None:
        """Releases the runtime."""
        return


class WatchedRunner(Runner):
    """One whose runtime shows the experts in passing: those of a prompt are what `watching` tells of it."""

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        with self.watching() as seen:
            return seen(len(self.logits(token_ids)))


@dataclass(frozen=True)
class Target(ABC):
    """A runtime's format; its fields are its options. `extra` is the pip extra that brings what `run` needs, `packages`
    are those that it imports.

    `grammar` says what quants there are where `policies` are only those of common names.
    `arithmetic` is the type of the activations that runners multiply by weights of any class, as `Arithmetic` of
    validate/execution.py names it; None of those whose kernels round activations as each class asks. A target whose
    quants say it, each for itself, has its own `arithmetic_of`.
    `auto_base` is the quant that one whose encodings are allotted to fill a size has all else from.
    `size_error` is the share by which a file may turn out larger than it is planned.
    One that `weighs_refined_only` has no use for an importance of columns without `refine`.
    One that `gives_vectors` has a form of models that give these instead of logits.
    `file_suffix` is that of a format whose artifact is a file that the user may name: its targets have the option
    `outfile`. One that `is_package` is a folder to the file system.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    packages: ClassVar[Sequence[str]] = ()
    policies: ClassVar[Sequence[Policy]]
    default_quant: ClassVar[str]
    auto_base: ClassVar[str] = ""
    grammar: ClassVar[str | None] = None
    arithmetic: ClassVar[str | None] = None
    file_suffix: ClassVar[str | None] = None
    is_package: ClassVar[bool] = False
    weighs_refined_only: ClassVar[bool] = False
    gives_vectors: ClassVar[bool] = False
    size_error: ClassVar[float] = 0.0

    statistics: str | None = statistics_option()
    allotment: Allotment | None = field(default=None, repr=False)

    def run_memory(self, quant: str, tensors: Sequence[ListedTensor], size_bytes: int) -> RunMemory:
        """What the runtime holds in memory of an artifact of these tensors and files, on the CPU."""
        return RunMemory(weights=size_bytes)

    def arithmetic_of(self, quant: str) -> str | None:
        """`arithmetic` for artifacts of a quant."""
        return self.arithmetic

    def policy(self, quant: str) -> Policy:
        """Raises UsageError listing the valid quants."""
        return find_policy(self.policies, quant, target=self.name)

    def named(self, quant: str) -> str:
        """The own name of a quant, also of one whose encodings are allotted.

        Raises: UsageError listing the valid quants.
        """
        wanted = read_wanted(quant)
        if wanted is None:
            return self.policy(quant).name
        if wanted.base is not None:
            wanted = replace(wanted, base=self.policy(wanted.base).name)
        return wanted.name

    def base_of(self, quant: str) -> str:
        """The named quant that an allotted one is made from; a named one itself."""
        return base_of(quant, self.auto_base)

    def mixes(self, graph: WeightGraph, tensor: TensorPlan) -> Sequence[str]:
        """The encodings that a planned tensor could have in place of its own; none of one that has to stay."""
        return ()

    def stored_alike(self, role: Role, layer: int | None) -> Hashable:
        """Weights of which this is the same have one encoding: what a runtime multiplies by at once."""
        return role, layer

    def covers(self, tensor: TensorPlan) -> Sequence[Address]:
        """The weights that a planned tensor with a role holds."""
        return tensor.addresses

    def stored_bytes(self, encoding: Encoding, tensor: TensorPlan) -> int:
        """Bytes that a tensor takes in an encoding, padding included."""
        return encoding.nbytes(tensor.view.shape)

    def with_encodings(self, allotment: Allotment) -> Self:
        """The same target with encodings that were allotted, for plans of the quant they are allotted over."""
        return replace(self, allotment=allotment)

    def as_written(self, artifact: Artifact) -> Self:
        """The target as it was when it wrote an artifact: with its options, and what its manifest says was allotted."""
        written = self.with_options(artifact.options)
        wanted = read_wanted(artifact.quant)
        if wanted is None:
            return written
        entries = (entry for entry in artifact.entry["tensors"] if entry["role"] is not None)
        encodings = {(find_role(entry["role"]), entry["layer"]): str(entry["encoding"]) for entry in entries}
        return written.with_encodings(Allotment(wanted.name, wanted.word, encodings))

    def labelled(self, quant: str) -> str:
        """What artifacts of a quant are called: with an allotment by its name."""
        return quant if self.allotment is None else self.allotment.name

    def ending(self, graph: WeightGraph, quant: str) -> str:
        """How names of files end that a quant is told from, which is the word after the last hyphen."""
        word = quant if self.allotment is None else self.allotment.word
        return f"-tuned-{word}" if self.allotment or graph.tuned else f"-{word}"

    def mixed(self, policy: Policy) -> Policy:
        """A policy with what was allotted in place of its own encodings."""
        return policy if self.allotment is None else self.allotment.over(policy)

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The same target, configured.

        Raises: UsageError for an option that this target does not have, or a value that it does not take.
        """
        found = checked(self.name, self, options)
        return replace(self, **found) if found else self

    @property
    def options(self) -> dict[str, Any]:
        """What was configured: the options that differ from a plain target's, as the manifest keeps them."""
        return changed(self)

    @abstractmethod
    def plan(self, graph: WeightGraph, quant: str) -> Plan:
        """All files, tensors and bytes; reads no weight. Raises UsageError for what cannot be expressed."""

    @abstractmethod
    def write(self, plan: Plan, graph: WeightGraph, folder: Path, run: Execution) -> None:
        """Writes the plan's files into an empty folder."""

    @abstractmethod
    def shared_files(self, graph: WeightGraph, artifacts: Iterable[Plan | Artifact]) -> dict[str, bytes]:
        """Files that all quants of one folder share (config, tokenizer), given all that will lie there."""

    def check_files(self, artifact: Artifact) -> None:  # noqa: B027 (most formats name no other file)
        """Raises InputError if the artifact refers to a file that is not one of its own."""

    def recognise(self, path: Path) -> Sequence[Artifact]:
        """The artifacts of this format that lie at a path, whoever wrote them; none if there is no such thing.

        They are told from the files alone. A folder may hold several.
        Raises: InputError for one that is damaged or not whole, or of a model that is not of our families.
        """
        return ()

    def open(self, path: Path, *, name: str | None = None) -> WeightGraph | None:
        """The model of this format that lies at a path, whoever wrote it, as a source; None if there is none.

        Raises: InputError for one that is damaged, of no family here, or stored in a way that is not decoded here.
        """
        return None

    def listed(self, artifact: Artifact) -> Sequence[ListedTensor]:
        """What a recognised artifact holds, by the names its writer gave. Raises InputError for a malformed file."""
        return ()

    @abstractmethod
    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        """The decoded weights of an artifact, lazily.

        Raises: InputError for a malformed file; NotJudged for a sound one whose weights are not all readable here.
        """

    def longest_text(self, artifact: Artifact, config: ModelConfig) -> int:
        """The positions that a conversation may have: as many as the model was made for, if the file holds no fewer.

        Raises: InputError for a malformed file.
        """
        return config.context_length

    def as_run(self, graph: WeightGraph) -> WeightGraph:
        """The model with the numbers of its config as the runtime has them, where it rounds one of them by itself."""
        return graph

    @abstractmethod
    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        """Loads an artifact into its runtime. Raises BackendError if the runtime is not installed."""

    def missing(self) -> str | None:
        """What must be installed before `run` works, as a pip line; None if it works now."""
        is_ready = all(importlib.util.find_spec(name) is not None for name in self.packages)
        return None if is_ready else f'pip install "lfm-convert[{self.extra}]"'


def named_stem(outfile: str | None, suffix: str, quant: str, default: str) -> str:
    """The name of an artifact's file without its suffix: as the user wants it, `{ftype}` being the quant.

    Raises: UsageError for a name with another suffix.
    """
    if outfile is None:
        return default
    if any("\ud800" <= mark <= "\udfff" for mark in outfile):  # bytes of a name that no text of ours could hold
        raise UsageError(f"--outfile {outfile!a}: expected a name in UTF-8, as the manifest and runtimes spell names")
    stem = outfile.removesuffix(suffix).replace("{ftype}", quant)
    if stem == outfile or not stem or Path(stem).name != stem:
        raise UsageError(f"--outfile {outfile}: expected the name of a file that ends in {suffix}")
    return stem


_TARGETS = {
    "gguf": "gguf.target",
    "onnx": "onnx.target",
    "mlx": "mlx.target",
    "executorch": "executorch.target",
    "coreml": "coreml.target",
    "compressed-tensors": "compressed_tensors.target",
}
# Those whose artifacts can be a source.
_SOURCES = ("gguf", "mlx")


def open_artifact(path: Path, *, name: str | None = None) -> WeightGraph | None:
    """The model of any target's format that lies at a path; None of what is none. Raises: as `Target.open`."""
    found = (get_target(target).open(path, name=name) for target in _SOURCES)
    return next((graph for graph in found if graph is not None), None)


@cache
def get_target(name: str) -> Target:
    """The target of that name.

    Raises: UsageError listing the targets there are.
    """
    if name not in _TARGETS:
        raise UsageError(f"unknown target '{name}': expected one of {', '.join(_TARGETS)}")
    module = importlib.import_module(f".{_TARGETS[name]}", __package__)
    found: Target = module.TARGET
    return found


def target_names() -> tuple[str, ...]:
    """All registered names."""
    return tuple(_TARGETS)
