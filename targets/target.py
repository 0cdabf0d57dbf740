"""What a target is: names, plan, write, read back, run. One folder per runtime, one line here each."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from ..convert.errors import UsageError
from ..convert.model.config import CONFIG_FILE
from ..convert.model.dtypes import Float32
from ..convert.model.graph import Role, WeightGraph
from ..convert.model.tensor import TensorView
from ..convert.plans import Plan
from ..convert.stream import Execution
from ..quantize.policy import Policy, find_policy

# The address of a weight: its role, and its layer (None outside the layers).
Address = tuple[Role, int | None]


@dataclass(frozen=True)
class Artifact:
    """One artifact on disk: what the manifest says of it.

    `path` is the file a runtime is pointed at; `folder` holds the manifest, `files` are all that belong to it.
    """

    path: Path
    folder: Path
    target: str
    quant: str
    class_name: str
    files: tuple[Path, ...]
    entry: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def label(self) -> str:
        """What reports call it: its main file, or the folder of one whose name is always the same."""
        return self.path.parent.name if self.path.name == CONFIG_FILE else self.path.name

    @property
    def size_bytes(self) -> int:
        return sum(file.stat().st_size for file in self.files)

    @property
    def options(self) -> Mapping[str, Any]:
        """What its target was configured with."""
        return dict(self.entry.get("options", {}))


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

    def tokenize(self, text: str) -> list[int] | None:
        """Ids of a text by the runtime's own tokenizer, BOS first; None if it takes ids only."""
        return None

    def template(self) -> str | None:
        """The chat template inside the artifact; None if it lies in a file beside it."""
        return None

    def render(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[Mapping[str, Any]]
    ) -> list[str] | None:
        """Chats as the runtime's own template engine writes them; None if it leaves that to its clients."""
        return None

    def another(self) -> Runner | None:
        """A second conversation on the same loaded model, which closes with this one; None if there is only one."""
        return None

    # The ways in which `batch` lays prompts of different lengths side by side.
    batches: ClassVar[Sequence[str]] = ()

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Logits [n, V] of prompts that are run together, each from an empty state, in one of the `batches` ways."""
        raise NotImplementedError

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        """The experts [n, top_k] that each layer chose for a prompt; None if the runtime does not show them."""
        return None

    def close(self) -> None:
        """Releases the runtime."""
        return


class Target(ABC):
    """A runtime's format. `extra` is the pip extra that brings what `run` needs.

    `runs_in_float32` says that runners multiply quantised weights by float32 activations, not by 8-bit ones.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    extra: ClassVar[str]
    policies: ClassVar[Sequence[Policy]]
    default_quant: ClassVar[str]
    runs_in_float32: ClassVar[bool] = False

    def policy(self, quant: str) -> Policy:
        """Raises UsageError listing the valid quants."""
        return find_policy(self.policies, quant, target=self.name)

    def with_options(self, options: Mapping[str, Any]) -> Self:
        """The same target, configured: an option is a field of the target's class.

        Raises: UsageError for an option that this target does not have.
        """
        known: set[str] = {field.name for field in fields(self)} if is_dataclass(self) else set()
        unknown = sorted(set(options) - known)
        if unknown:
            raise UsageError(f"target {self.name} has no option --{unknown[0].replace('_', '-')}")
        return replace(self, **options) if options else self  # type: ignore[type-var]

    @property
    def options(self) -> dict[str, Any]:
        """What was configured: the fields that differ from a plain target, as the manifest keeps them.

        Of a file its name: no manifest tells where it lay.
        """
        if not is_dataclass(self):
            return {}
        changed = {f: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) != f.default}
        return {f.name: Path(value).name if f.metadata.get("is_file") else value for f, value in changed.items()}

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

    @abstractmethod
    def read(self, artifact: Artifact) -> dict[Address, TensorView]:
        """The decoded weights of an artifact, lazily. Raises InputError for a malformed file."""

    @abstractmethod
    def run(self, artifact: Artifact, *, threads: int) -> Runner:
        """Loads an artifact into its runtime. Raises BackendError if the runtime is not installed."""

    @abstractmethod
    def missing(self) -> str | None:
        """What must be installed before `run` works, as a pip line; None if it works now."""


_TARGETS = {"gguf": "gguf.target", "onnx": "onnx.target", "mlx": "mlx.target", "executorch": "executorch.target"}


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
