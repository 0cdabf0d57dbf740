"""The weight graph: what every exporter reads and every artifact is compared with."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from .adapters.adapter import Merge
from .blocks import Branches, FeedForward, Mixer
from .config import ModelConfig, feed_forward_of, mixer_of
from .roles import Address, Role
from .source.assets import Assets
from .source.open_file import SourceFiles
from .source.stamps import SourceStamp, refuse_changed
from .source.stops import Stops, find_stops
from .source.tokenizer import Tokenizer
from .tensor import TensorView


@dataclass(frozen=True)
class Weight:
    """One weight of the graph; `layer` is None outside the layers."""

    role: Role
    layer: int | None
    view: TensorView

    @property
    def address(self) -> Address:
        return self.role, self.layer

    @property
    def shape(self) -> tuple[int, ...]:
        return self.view.shape


@dataclass(frozen=True)
class Layer:
    """One layer: its branches, and the weights of them all by role."""

    index: int
    branches: Branches
    weights: Mapping[Role, Weight]

    @property
    def mixer(self) -> Mixer:
        """The block that mixes tokens."""
        return mixer_of(self.branches)

    @property
    def feed_forward(self) -> FeedForward:
        return feed_forward_of(self.branches)

    def __getitem__(self, role: Role) -> TensorView:
        return self.weights[role].view

    def get(self, role: Role) -> TensorView | None:
        weight = self.weights.get(role)
        return weight.view if weight else None


@dataclass(frozen=True, kw_only=True)
class WeightGraph:
    """A model as roles and lazy tensors. `checkpoint` is None for a graph declared from a config alone; `adapters` are
    those that were merged into its weights, if any were.

    `quantised_as` is what the source's weights are stored as, such as Q4_0: then they are what it decodes to, and so is
    the reference of every comparison. None for plain floats. `tuned` is what there is to say of codes that are chosen for its weights
    beforehand, which artifacts take as they are; empty of most.
    """

    name: str
    folder: Path
    config: ModelConfig
    top: Mapping[Role, Weight]
    layers: tuple[Layer, ...]
    tokenizer: Tokenizer | None
    assets: Assets
    checkpoint: SourceFiles | None = field(default=None, repr=False)
    adapters: Merge | None = field(default=None, repr=False)
    notes: tuple[str, ...] = ()
    quantised_as: str | None = None
    tuned: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __getitem__(self, role: Role) -> TensorView:
        return self.top[role].view

    @property
    def head(self) -> TensorView:
        """[V, H]: the language-model head, which is the embedding when tied."""
        return self.top.get(Role.LM_HEAD, self.top[Role.EMBED]).view

    @property
    def folders(self) -> tuple[Path, ...]:
        """The checkpoint's, unless it is a file, and those of the adapters."""
        own = () if self.checkpoint is not None and self.checkpoint.are_all else (self.folder,)
        return (*own, *(adapter.folder for adapter in (self.adapters.adapters if self.adapters else ())))

    @property
    def stamps(self) -> tuple[SourceStamp, ...]:
        """What the files looked like that its weights are read from."""
        sources = (self.checkpoint, self.adapters)
        return tuple(stamp for source in sources if source is not None for stamp in source.stamps)

    def check_unchanged(self) -> None:
        """Raises InputError if a source file was replaced or written to since it was opened."""
        refuse_changed(self.stamps)

    @property
    def is_at_hand(self) -> bool:
        """Whether its weights can be read."""
        return self.checkpoint is not None

    @property
    def is_tied(self) -> bool:
        return Role.LM_HEAD not in self.top

    def weights(self) -> Iterator[Weight]:
        """Every weight once, in model order: embedding, final norm, head, then layer by layer."""
        yield from self.top.values()
        for layer in self.layers:
            yield from layer.weights.values()

    def with_weights(self, views: Mapping[Address, TensorView]) -> WeightGraph:
        """The same model with other tensors in place of those given, such as an artifact's decoded ones.

        A head among them unties a tied model: some formats store the token table and the head apart.
        """

        def swap(weights: Mapping[Role, Weight]) -> dict[Role, Weight]:
            return {r: replace(w, view=views.get((w.role, w.layer), w.view)) for r, w in weights.items()}

        layers = tuple(replace(layer, weights=swap(layer.weights)) for layer in self.layers)
        top = swap(self.top)
        head = views.get((Role.LM_HEAD, None))
        if head is not None:
            top[Role.LM_HEAD] = Weight(Role.LM_HEAD, None, head)
        return replace(self, top=top, layers=layers)

    @cached_property
    def stops(self) -> Stops:
        """Where a text ends. Renders a probe conversation by the chat template, once."""
        return find_stops(self.config, self.assets, self.tokenizer)

    @property
    def stop_ids(self) -> tuple[int, ...]:
        return self.stops.ids

    @property
    def n_parameters(self) -> int:
        return sum(w.view.n_rows * w.view.n_cols for w in self.weights())
