"""What a family of models is: how its configs are read into blocks, and what its checkpoints and the formats call them.

A family is one file of this folder and its line in `FAMILIES`. Whatever follows from roles and blocks is not said here:
a format's names are listed by role in that format's folder, and a family states what is called otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from ..blocks import Activation, Attention, Branches, Norm, Scoring
from ..config import ModelConfig
from ..config_fields import Fields
from ..errors import UsageError
from ..roles import Role, Trait, of_trait
from .places import Part, Place

# What sentence-transformers keeps in a folder of its own, as mlx-vlm reads it beside the others.
PROJECTION = Place("1_Dense.linear.weight")

# Role -> where checkpoints keep it, the usual place first.
Places = Mapping[Role, Sequence[Place]]


class RopeTables(Enum):
    """Where llama.cpp's graph of an architecture finds what the default table of a rope is divided by."""

    NONE = "nowhere"
    TAKEN = "in a tensor, where the file has one"
    DEMANDED = "in a tensor, for layers that see every position"
    BY_LENGTH = "in two tensors, where the file has them: one for contexts longer than the trained"


@dataclass(frozen=True, kw_only=True)
class GgufNames:
    """What llama.cpp calls an architecture, and those of its tensors that are not called by their role.

    Its graph of an architecture is fixed. Of the weights that a block may have or lack it knows only those which it
    `demands` of every such block, and those which it `takes` where they are. Weights of one name are one tensor, whose
    rows are theirs in the order of the roles. If it `has_convolutions`, some layers are such. If it `has_windows`, some
    layers with attention have one and a rope of their own; all but every `window_period`-th where the file does not say
    which. Only if it `has_free_heads` may heads together be of another size than the hidden state. If it
    `pairs_neighbours`, the rows of each head of queries and keys are stored in that order; if it `has_partial_ropes`,
    numbers of a head may stay as they are. Only layers that `turns` is true of have a rope; if `may_stand`, none may.

    `has_scales` says that a file gives what embeddings, scores, branches and logits are multiplied with; of others
    `embedding_scale` and `score_scale` are, where that is not one and the root of the head's size. `scoring` is that of
    a mixture, None if there is none.

    `keys` are those of its converter beside the usual ones; if not `has_usual_keys`, all of them, in its own order, and
    `early_keys` come before all others. `has_head_size` says whether the size of heads is among them: None where
    the config gives it. `lists_heads`: of keys and values for each layer even if all are alike. `says` are values that
    follow from no block. Models of `wide_values` layers, whose heads share keys, have values in more bits in some
    quants. One that `gives_vectors` heeds what a file says of pooling, of a projection, and of tokens that see later
    ones. `first_build` is that of llama.cpp which first had it, where that matters.
    """

    architecture: str
    tensors: Mapping[Role, str] = field(default_factory=dict)
    demands: frozenset[Role] = frozenset()
    takes: frozenset[Role] = frozenset()
    has_convolutions: bool = False
    has_windows: bool = False
    window_period: int | None = None
    has_free_heads: bool = False
    pairs_neighbours: bool = False
    has_partial_ropes: bool = False
    turns: Callable[[int], bool] = lambda layer: True
    may_stand: bool = False
    rope_tables: RopeTables = RopeTables.NONE
    activation: Activation = Activation.SILU
    scoring: Scoring | None = None
    has_scales: bool = False
    embedding_scale: Callable[[ModelConfig], float] = lambda config: 1.0
    score_scale: Callable[[ModelConfig, Attention], float] | None = None
    keys: tuple[str, ...] = ()
    has_usual_keys: bool = True
    early_keys: tuple[str, ...] = ()
    has_head_size: bool | None = None
    lists_heads: bool = False
    says: Callable[[ModelConfig], Mapping[str, int]] = lambda config: {}
    wide_values: int | None = None
    gives_vectors: bool = False
    first_build: int = 0


class MlxCan(Enum):
    """What a class that mlx-lm runs may do with a model's blocks, beside what all of them do."""

    OWN_HEAD = auto()  # logits by another matrix than the embedding
    ONE_KIND = auto()  # layers that all mix tokens alike
    FREE_HEADS = auto()  # which together are of another size than the hidden state
    PLAIN_HEADS = auto()  # queries and keys that are not normed
    BIASES = auto()  # of the four projections of attention
    GATES = auto()  # of heads
    WINDOWS = auto()
    SOME_WINDOWS = auto()  # if a layer has none
    WINDOWS_BY_TURNS = auto()  # in all layers of a run but the last
    WINDOW_ROPE = auto()  # a default one of their own in layers with a window
    NO_ROPE = auto()  # attention that knows no positions
    PART_TURNS = auto()  # the first numbers of a head
    PAIRS_REST = auto()  # the last pairs of a head
    SCORE_SCALE = auto()  # any
    SCALES = auto()  # of embeddings, branches and logits
    ROOT_SCALE = auto()  # the embedding's is the root of the hidden size, rounded to bfloat16
    GELU = auto()  # in place of SiLU
    POST_NORMS = auto()
    MIXTURES = auto()


@dataclass(frozen=True, kw_only=True)
class MlxNames:
    """Those tensors of a layer that mlx-lm does not call as the checkpoint does, and what its class of the family can.

    `is_released` says whether a released mlx-lm has such a class; for others this house has one. `ropes` are the types
    that it reads of `rope_scaling`; `wide` is what it packs with 8 bits in groups of 64 whatever the others have;
    `fields` are those that it reads beside transformers' own.
    """

    tensors: Mapping[Role, str] = field(default_factory=dict)
    is_released: bool = True
    can: Set[MlxCan] = frozenset()
    ropes: Set[str] = frozenset()
    wide: Set[Role] = of_trait(Trait.ROUTER)
    fields: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}


@dataclass(frozen=True, kw_only=True)
class OnnxNames:
    """What Transformers.js and onnxruntime-genai may take a family for that they do not know; its caches are the same.

    A `model_type` for both, and of its layers those that are called otherwise there; `genai_type` is one for genai
    alone. `is_wide` says that the residual stream of its models leaves the range of half precision.
    """

    model_type: str = ""
    layer_types: Mapping[str, str] = field(default_factory=dict)
    genai_type: str = ""
    is_wide: bool = False


@dataclass(frozen=True, kw_only=True)
class ServerNames:
    """Fields of a config that vLLM's class for the family reads beside those of transformers'."""

    fields: Callable[[ModelConfig], dict[str, Any]] = lambda config: {}


@dataclass(frozen=True, kw_only=True)
class Scales:
    """What the token table's rows and the head's outputs are multiplied with."""

    embedding: float = 1.0
    logits: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Family:
    """One family. `read_layers` gives the blocks of a config, `read_norm` the norm before the head; the names are a checkpoint's, below `layer_prefix`.

    `encoders` are the classes whose models give vectors. `aliases` are a config field's other spellings. `hub_fields`
    are the fields of a config as transformers' class of the family has them today, all given, whatever spelling the
    checkpoint uses.
    """

    name: str
    model_type: str
    architecture: str
    read_layers: Callable[[Fields], tuple[Branches, ...]]
    read_norm: Callable[[Fields], Norm]
    top_places: Places
    layer_places: Places
    hub_fields: Callable[[ModelConfig], dict[str, Any]]
    read_scales: Callable[[Fields], Scales] = lambda read: Scales()
    layer_prefix: str = "model.layers.{layer}."
    encoders: frozenset[str] = frozenset()
    aliases: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defaults: Mapping[str, Any] = field(default_factory=dict)
    gguf: GgufNames | None = None
    mlx: MlxNames | None = None
    onnx: OnnxNames = field(default_factory=OnnxNames)
    servers: ServerNames | None = None
    # Buffers that some checkpoints carry and the config fully determines: endings of their names.
    derived: Sequence[str] = (".rotary_emb.inv_freq", ".pos_emb.inv_freq")

    def places(self, role: Role, layer: int | None) -> tuple[str, Sequence[Place]]:
        """Where a checkpoint keeps a weight: a prefix, and the places below it, the usual one first."""
        if role is Role.PROJECTION:
            return "", (PROJECTION,)
        if layer is None:
            return "", self.top_places[role]
        return self.layer_prefix.format(layer=layer), self.layer_places[role]

    def tensor_name(self, role: Role, layer: int | None) -> str:
        """`model.layers.3.self_attn.q_proj.weight`; experts have "{e}" where each one's number stands."""
        prefix, places = self.places(role, layer)
        return prefix + places[0].name

    def kept_together(self, role: Role) -> tuple[Role, ...]:
        """The weights of a layer that checkpoints keep in one tensor with this one, in the order of their rows."""
        place = self.layer_places[role][0]
        return place.roles if isinstance(place, Part) else (role,)

    def refuse_for(self, format_: str) -> UsageError:
        """The error of a format that has no architecture for this family."""
        return UsageError(f"{format_} has no architecture for {self.name}: choose another target")
