"""What a checkpoint's config says, normalised: the blocks of the model, and the numbers that belong to none of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from .blocks import Attention, Block, Branch, Branches, FeedForward, Mixer, Mixture, Norm, Rope, VectorHead
from .dtypes import TORCH_NAMES, DType
from .errors import UsageError

if TYPE_CHECKING:
    from .families.family import Family

CONFIG_FILE = "config.json"

Kind = TypeVar("Kind", bound=Block)


def mixer_of(branches: Branches) -> Mixer:
    """The block of a layer that mixes tokens."""
    return next(branch.block for branch in branches if isinstance(branch.block, Mixer))


def feed_forward_of(branches: Branches) -> FeedForward:
    """The block of a layer that does not."""
    return next(branch.block for branch in branches if isinstance(branch.block, FeedForward))


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every number of the architecture, one owner each. Units: sizes in elements.

    `raw` is the config file's object, for fields that only travel on into artifacts; `family` knows the names of its
    model_type. `embedding_scale` multiplies what the table gives, `logit_scale` what the head gives.
    A model that gives `vectors` has no head for logits.
    """

    family: Family = field(repr=False, compare=False)
    model_type: str
    hidden_size: int
    vocab_size: int
    layers: tuple[Branches, ...]
    final_norm: Norm
    context_length: int
    tied: bool
    embedding_scale: float = 1.0
    logit_scale: float = 1.0
    vectors: VectorHead | None = None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    dtype: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def float_type(self) -> DType:
        """What the tensors are in, where nothing but the config says it."""
        return TORCH_NAMES.get(self.dtype, DType.BF16)

    @property
    def n_outputs(self) -> int:
        """How many numbers there are to a row of what the model gives: logits, or the numbers of a vector."""
        if self.vectors is None:
            return self.vocab_size
        return self.vectors.projected or self.hidden_size

    @property
    def is_causal(self) -> bool:
        """Whether no token sees a later one."""
        return all(mixer.is_causal for mixer in self.mixers)

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def mixers(self) -> tuple[Mixer, ...]:
        """What mixes tokens in each layer."""
        return tuple(mixer_of(branches) for branches in self.layers)

    @property
    def feed_forwards(self) -> tuple[FeedForward, ...]:
        """What does not, in each layer."""
        return tuple(feed_forward_of(branches) for branches in self.layers)

    @property
    def branches(self) -> tuple[Branch, ...]:
        """Those of all layers."""
        return tuple(branch for branches in self.layers for branch in branches)

    def of_kind(self, kind: type[Kind]) -> dict[int, Kind]:
        """The blocks of a kind by layer."""
        blocks = ((i, branch.block) for i, branches in enumerate(self.layers) for branch in branches)
        return {i: block for i, block in blocks if isinstance(block, kind)}

    @property
    def ropes(self) -> tuple[Rope, ...]:
        """Those of the attention layers, each once, in the order in which layers have them."""
        return tuple(dict.fromkeys(block.rope for block in self.of_kind(Attention).values() if block.rope))

    def first(self, kind: type[Kind]) -> Kind | None:
        """The first block of a kind; None if there is none."""
        return next(iter(self.of_kind(kind).values()), None)

    def shared(self, kind: type[Kind]) -> Kind | None:
        """The block that all layers of a kind have in common, for formats that say it once; None if there is none.

        Raises: UsageError if they differ.
        """
        found = self.of_kind(kind)
        if len(set(found.values())) > 1:
            raise UsageError(f"layers {', '.join(map(str, found))} have each {kind.name} of another size")
        return next(iter(found.values()), None)

    @property
    def is_mixture(self) -> bool:
        """Whether any layer chooses among experts."""
        return bool(self.of_kind(Mixture))

    @property
    def mixture(self) -> Mixture | None:
        """The mixture of experts that layers have in common; None for a dense model."""
        return self.shared(Mixture)

    @property
    def norm_eps(self) -> float:
        """What all norms add to the mean square. Raises: UsageError if they differ."""
        norms = {self.final_norm, *(norm for branch in self.branches for norm in branch.norms)}
        if len(norms) > 1:
            raise UsageError(f"norms add {' and '.join(str(eps) for eps in sorted(norm.eps for norm in norms))}")
        return norms.pop().eps
