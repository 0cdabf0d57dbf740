"""An adapter on disk: its files, its tensors, and how much of it a model gets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ..dtypes import DType
from ..errors import Faults, InputError, UsageError
from ..source.adapters import ADAPTER_CONFIG
from ..source.safetensors import SafetensorsFile
from ..source.stamps import SourceStamp, stamp_of
from ..tensor import TensorView

WEIGHTS = "adapter_model.safetensors"
_PICKLE = "adapter_model.bin"
# What adapters may be merged in, beside the base's own type.
MERGE_DTYPES = {"float32": DType.F32}
_CHECKED_AT_ONCE = 1 << 20  # elements


@dataclass(frozen=True)
class AdapterChoice:
    """An adapter that somebody asks for; `weight` multiplies what it adds."""

    folder: Path
    weight: float = 1.0


@dataclass(frozen=True)
class Adapting:
    """The adapters that a model is to have, and the type they are merged in; None for that of each of its tensors."""

    choices: tuple[AdapterChoice, ...] = ()
    dtype: DType | None = None

    @property
    def folders(self) -> tuple[Path, ...]:
        return tuple(choice.folder for choice in self.choices)


# No adapter.
AS_IT_IS = Adapting()


def adapting(folders: Sequence[Path], weights: Sequence[float] = (), dtype: str | None = None) -> Adapting:
    """Adapters with the weights given for them, in the same order; without weights all of 1. `dtype` is one of
    `MERGE_DTYPES`, or None.

    Raises: UsageError for another number of weights than of adapters, or one that is none; InputError for a folder that
    is not there.
    """
    if dtype is not None and dtype not in MERGE_DTYPES:
        raise UsageError(f"unknown merge dtype '{dtype}': expected {' or '.join(MERGE_DTYPES)}")
    if not folders and (weights or dtype):
        raise UsageError("a weight or type to merge in is given, and no adapter")
    if weights and len(weights) != len(folders):
        raise UsageError(
            f"{len(folders)} adapters and {len(weights)} weights are given: expected one weight for each adapter, in "
            "their order, or none"
        )
    if bad := [weight for weight in weights if not math.isfinite(weight)]:
        raise UsageError(f"the weight of an adapter is {bad[0]}: expected a finite number")
    for folder in folders:
        if not folder.is_dir():
            raise InputError(
                f"{folder}: no such folder: expected that of an adapter, with {ADAPTER_CONFIG} and {WEIGHTS}"
            )
    choices = tuple(map(AdapterChoice, folders, weights or [1.0] * len(folders)))
    return Adapting(choices, None if dtype is None else MERGE_DTYPES[dtype])


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """One that was opened. `files` are those that decide it, `kind` is what it is in words."""

    folder: Path
    weight: float
    kind: str
    stamps: tuple[SourceStamp, ...]
    tensors: Mapping[str, TensorView] = field(repr=False)

    @property
    def name(self) -> str:
        return self.folder.resolve().name or "adapter"

    @property
    def label(self) -> str:
        """Its name, with its weight where that says something."""
        return adapter_label(self.name, self.weight)


def adapter_label(name: str, weight: float) -> str:
    """What an adapter is called in sentences."""
    return name if weight == 1 else f"{name} × {weight:g}"


def open_files(folder: Path, name: str) -> tuple[tuple[SourceStamp, ...], Mapping[str, TensorView]]:
    """The stamps of config and weights, and the tensors by their stored names.

    Raises: InputError for weights that are missing, pickled or malformed.
    """
    if not (folder / name).is_file():
        pickled = " (found a pickle, which is refused: save as safetensors)" if (folder / _PICKLE).exists() else ""
        raise InputError(f"missing {name}{pickled}")
    file = SafetensorsFile(folder / name)
    return (stamp_of(folder / ADAPTER_CONFIG), stamp_of(file.path)), dict(file.tensors)


def refuse_not_finite(tensors: Mapping[str, TensorView], faults: Faults) -> None:
    """Adds a fault for each tensor that holds NaN or infinity: all are read once, a piece at a time."""
    for tensor in tensors.values():
        step = max(1, _CHECKED_AT_ONCE // max(1, tensor.n_cols))
        try:
            for low in range(0, tensor.n_rows, step):
                tensor.rows(low, min(low + step, tensor.n_rows))
        except InputError as error:
            faults.add(str(error))


@dataclass(frozen=True)
class Merge:
    """The adapters of a merged model, and the type it is merged in; None for that of each tensor of the base."""

    adapters: tuple[Adapter, ...]
    dtype: DType | None = None

    @property
    def stamps(self) -> tuple[SourceStamp, ...]:
        return tuple(stamp for adapter in self.adapters for stamp in adapter.stamps)
