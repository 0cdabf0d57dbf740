"""What will be written: every file, tensor and byte, known before any weight is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from ..graph.dtypes import Float32
from ..graph.errors import UsageError
from ..graph.roles import Address, Role
from ..graph.tensor import TensorView
from ..quantize.encoding import Encoding
from ..quantize.grids import passes

# What a streaming writer holds beside its byte budget: libraries, headers, encode scratch.
BASE_MEMORY_BYTES = 120_000_000
DEFAULT_BUDGET_BYTES = 128 << 20


@dataclass(frozen=True)
class Placement:
    """Where one part of an encoded tensor goes. Units: bytes from the start of the file."""

    path: str
    offset: int


@dataclass(frozen=True, kw_only=True)
class TensorPlan:
    """One stored tensor: what it is called there, how it is encoded, where each part lies.

    `role` is None for a constant that the config determines, such as a rotary table. `others` are weights of the same
    layer whose rows follow those of the first. `importance` [slices, n_cols] weighs the columns of each of that many
    equal runs of rows, such as the experts of a stack.
    """

    name: str
    role: Role | None
    layer: int | None
    shape: tuple[int, ...]
    encoding: Encoding
    view: TensorView = field(repr=False)
    placements: tuple[Placement, ...]
    importance: Float32 | None = field(default=None, repr=False)
    others: tuple[Role, ...] = ()

    @cached_property
    def passes(self) -> bool:
        """Whether its rows go in as the source has them: the format is the same, or holds their grid."""
        return passes(self.view, self.encoding)

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The weights that it holds."""
        return () if self.role is None else tuple((role, self.layer) for role in (self.role, *self.others))

    @property
    def rows_per_slice(self) -> int:
        """Rows that share their importance."""
        return self.view.n_rows // (1 if self.importance is None else len(self.importance))

    @property
    def nbytes(self) -> int:
        """Bytes of all parts, padding excluded."""
        return self.encoding.nbytes(self.view.shape)


@dataclass(frozen=True)
class FilePlan:
    """One file of the artifact, relative to its folder."""

    path: str
    nbytes: int


@dataclass(frozen=True)
class Fallback:
    """A tensor that is not stored as its policy wanted."""

    tensor: str
    wanted: str
    used: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything about an artifact but its bytes.

    `tensor_bytes` counts tensor data with the padding the format puts between tensors;
    `quantised_as` is that of the graph: what the source's weights are stored as, if not as floats.
    `tuned` says what was fitted to a text and how, as the manifest keeps it; empty of a plan as the quant alone has it.
    `details` is the target's own (a file header, a graph) for its `write`; `base_memory_bytes` is what its writer holds
    beside the byte budget, and `tuning_memory_bytes` what is held before that, while it is tuned.
    """

    target: str
    quant: str
    class_name: str
    main_file: str
    files: tuple[FilePlan, ...]
    tensors: tuple[TensorPlan, ...]
    tensor_bytes: int
    fallbacks: tuple[Fallback, ...] = ()
    notes: tuple[str, ...] = ()
    details: Any = field(default=None, repr=False)
    base_memory_bytes: int = BASE_MEMORY_BYTES
    tuning_memory_bytes: int = 0
    quantised_as: str | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def total_bytes(self) -> int:
        return sum(file.nbytes for file in self.files)

    def peak_memory_bytes(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> int:
        """Expected peak resident memory of tuning and writing it, above the bare interpreter."""
        return max(self.base_memory_bytes + budget_bytes, self.tuning_memory_bytes)

    def refuse_fallbacks(self) -> None:
        """Raises UsageError naming every tensor that fell back (`--strict`)."""
        if self.fallbacks:
            lines = "; ".join(
                f"'{f.tensor}' as {f.used} instead of {f.wanted} ({f.reason})" for f in self.fallbacks[:8]
            )
            more = len(self.fallbacks) - 8
            raise UsageError(f"--strict: {self.quant} would store {lines}" + (f"; and {more} more" if more > 0 else ""))

    def to_json(self, budget_bytes: int = DEFAULT_BUDGET_BYTES) -> dict[str, Any]:
        """The JSON object `lfm-convert plan --json` prints."""
        return {
            "target": self.target,
            "quant": self.quant,
            **({} if self.quantised_as is None else {"quantised_as": self.quantised_as}),
            **({"tuned": dict(self.tuned)} if self.tuned else {}),
            "files": [{"path": f.path, "bytes": f.nbytes} for f in self.files],
            "tensor_bytes": self.tensor_bytes,
            "total_bytes": self.total_bytes,
            "peak_memory_bytes": self.peak_memory_bytes(budget_bytes),
            "tensors": [
                {
                    "name": t.name,
                    "role": t.role and t.role.value,
                    "layer": t.layer,
                    "shape": list(t.shape),
                    "encoding": t.encoding.name,
                    "bytes": t.nbytes,
                    **({"unchanged": True} if t.passes else {}),
                }
                for t in self.tensors
            ],
            "fallbacks": [
                {"tensor": f.tensor, "wanted": f.wanted, "used": f.used, "reason": f.reason} for f in self.fallbacks
            ],
            "notes": list(self.notes),
        }


def largest_tensors(plan: Plan, n: int) -> Sequence[TensorPlan]:
    """The n largest stored tensors."""
    return sorted(plan.tensors, key=lambda t: -t.nbytes)[:n]
