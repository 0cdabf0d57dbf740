"""Merges adapters into a model: one after the other, as PEFT's `merge_and_unload` of each in turn.

Where a model ties its head to the embedding and an adapter changes one of them, they part, as in the model that was
trained; PEFT's own merge would change both.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from ..dtypes import DType
from ..errors import Faults, InputError
from ..graph import WeightGraph
from ..json_text import read_object
from ..roles import Address, Role
from ..source.adapters import ADAPTER_CONFIG
from ..tensor import TensorView
from .adapter import (
    WEIGHTS,
    Adapter,
    AdapterChoice,
    Adapting,
    Merge,
    open_files,
    refuse_not_finite,
)
from .base import other_base
from .changes import Change, ReplacedRows
from .merged import MergedTensor, Seated
from .modules import Modules
from .peft import PeftReader
from .settings import LoraSettings, read_settings

_EMBED, _HEAD = (Role.EMBED, None), (Role.LM_HEAD, None)
_SAME_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class Read:
    """An adapter held to a model: what it changes, by stored name, and the base's own tensors that it brings."""

    adapter: Adapter
    settings: LoraSettings
    changes: Mapping[str, Sequence[Change]]
    bases: Mapping[str, TensorView]
    notes: tuple[str, ...] = ()


def merge_adapters(graph: WeightGraph, wanted: Adapting, *, reads: bool = True) -> WeightGraph:
    """The model with adapters merged into it as it is read; the same model without any.

    With `reads` the adapters' values are looked at, too. Raises: InputError with all faults of all adapters.
    """
    if not wanted.choices:
        return graph
    found = read_adapters(graph, wanted.choices, reads=reads)
    merge = Merge(tuple(each.adapter for each in found), wanted.dtype)
    views = _Views(Modules(graph), merge.dtype)
    for each in found:
        views.add(each)
    merged, notes = views.settled()
    told = [f"{each.adapter.label}: {note}" for each in found for note in each.notes]
    return replace(
        merged,
        name="-".join([graph.name, *(each.adapter.name for each in found)]),
        adapters=merge,
        notes=(*graph.notes, *(_summary(each) for each in found), *notes, *told),
    )


def read_adapters(graph: WeightGraph, choices: Sequence[AdapterChoice], *, reads: bool = True) -> list[Read]:
    """Every adapter, held to the model. Raises: InputError with all faults of all of them."""
    found: list[Read] = []
    sentences: list[str] = []
    modules = Modules(graph)
    for choice in choices:
        faults = Faults()
        try:
            found.append(_read(modules, choice, faults, reads=reads))
            faults.raise_if_any(str(choice.folder))
        except InputError as error:
            sentences.append(str(error))
    if sentences:
        raise InputError("; ".join(sentences))
    return found


def _read(modules: Modules, choice: AdapterChoice, faults: Faults, *, reads: bool) -> Read:
    try:
        raw = read_object(choice.folder / ADAPTER_CONFIG)
    except FileNotFoundError:
        raise InputError(f"{choice.folder}: is no adapter: it has no {ADAPTER_CONFIG}") from None
    kind = raw.get("peft_type")
    if kind != "LORA":
        mlx = f"an adapter of mlx-lm ({raw['fine_tune_type']})" if raw.get("fine_tune_type") else None
        what = mlx or f"a PEFT adapter of type {kind!s:.40}"
        raise InputError(f"{choice.folder}: is {what}: expected peft_type LORA, which is LoRA, rsLoRA or DoRA")
    settings = read_settings(raw, faults)
    fault, note = other_base(modules.graph, settings.base)
    if fault:
        faults.add(fault)
    try:
        stamps, tensors = open_files(choice.folder, WEIGHTS)
    except InputError as error:
        faults.add(str(error))
        faults.raise_if_any(str(choice.folder))
        raise
    reader = PeftReader(modules=modules, settings=settings, weight=choice.weight, faults=faults)
    reader.read(tensors)
    if not tensors:
        faults.add(f"{WEIGHTS} holds no tensor")
    if reads:
        refuse_not_finite(tensors, faults)
    notes = (*settings.notes, *((note,) if note else ()))
    adapter = Adapter(folder=choice.folder, weight=choice.weight, kind=_kind(settings), stamps=stamps, tensors=tensors)
    return Read(adapter=adapter, settings=settings, changes=reader.changes, bases=reader.bases, notes=notes)


def _kind(settings: LoraSettings) -> str:
    return "DoRA" if settings.is_dora else "rsLoRA" if settings.is_rank_stabilised else "LoRA"


def _summary(read: Read) -> str:
    adapter, settings = read.adapter, read.settings
    n = len(read.changes)
    return (
        f"the {adapter.kind} adapter {adapter.label} (rank {settings.rank}, alpha {settings.alpha:g}) is merged into {n} "
        f"tensor{'' if n == 1 else 's'}"
    )


@dataclass
class _Views:
    """What each weight becomes, adapter after adapter."""

    modules: Modules
    dtype: DType | None
    bases: dict[str, TensorView] = field(default_factory=dict)
    seated: dict[Address, list[Seated]] = field(default_factory=lambda: defaultdict(list))

    def add(self, read: Read) -> None:
        for name, base in read.bases.items():
            before = self.bases.setdefault(name, base)
            if before is not base and not _same_rows(before, base):
                raise InputError(
                    f"{read.adapter.folder}: '{name}' of its base is another one than an earlier adapter's"
                )
        for name, changes in read.changes.items():
            for address, seat in self.modules.seats[name]:
                self.seated[address] += [Seated(seat, change) for change in changes]

    def settled(self) -> tuple[WeightGraph, tuple[str, ...]]:
        """The merged model, and what is to be said of head and embedding."""
        graph, notes = self.modules.graph, list[str]()
        if graph.is_tied:
            notes = self._part_or_tie()
            if notes:
                config = replace(graph.config, tied=False)
                graph = replace(graph.with_weights({_HEAD: graph[Role.EMBED]}), config=config)
        names = self._base_names()
        views: dict[Address, TensorView] = {}
        for weight in graph.weights():
            place = graph.config.family.places(*weight.address)[1][0]
            stored = place.as_stored(weight.view)
            base = self.bases.get(names.get(weight.address, ""), stored)
            changes = self.seated.get(weight.address, [])
            if changes or base is not stored:
                views[weight.address] = place.as_weight(MergedTensor(base, changes, self.dtype or stored.dtype))
        return graph.with_weights(views), tuple(notes)

    def _base_names(self) -> dict[Address, str]:
        found = {self.modules.seats[name][0][0]: name for name in self.bases}
        if self.modules.graph.is_tied and found:  # one tensor, whichever of its names it was saved under
            name = next(iter(found.values()))
            found |= {_EMBED: found.get(_EMBED, name), _HEAD: found.get(_HEAD, name)}
        return found

    def _part_or_tie(self) -> list[str]:
        """Leaves head and embedding one tensor where both become the same, and says so where they do not.

        Trained tokens are rows of both.
        """
        shared = [each for each in self.seated[_EMBED] if isinstance(each.change, ReplacedRows)]
        own = {address: [e for e in self.seated[address] if e not in shared] for address in (_EMBED, _HEAD)}
        if _are_same(own[_EMBED], own[_HEAD]):
            del self.seated[_HEAD]
            return []
        self.seated[_HEAD] += shared
        return ["the adapters change the embedding or the head alone: the tied pair parts, and both are stored"]


def _are_same(first: Sequence[Seated], second: Sequence[Seated]) -> bool:
    """Whether changes of embedding and head, read as they would change zeros, are the same."""
    if len(first) != len(second):
        return False
    for one, other in zip(first, second, strict=True):
        n_rows, n_cols = one.seat.shape
        for low in range(0, n_rows, _SAME_ROWS):
            zeros = np.zeros((min(_SAME_ROWS, n_rows - low), n_cols), np.float32)
            rows, others = (each.change.rows(low, zeros, zeros, lambda values: values) for each in (one, other))
            if not np.array_equal(rows, others):
                return False
    return True


def _same_rows(first: TensorView, second: TensorView) -> bool:
    steps = range(0, first.n_rows, _SAME_ROWS)
    bounds = [(low, min(low + _SAME_ROWS, first.n_rows)) for low in steps]
    return all(np.array_equal(first.rows(*each), second.rows(*each)) for each in bounds)
