"""What a family of models is: how its configs are read into blocks, and what its checkpoints and the formats call them.

A family is one file of this folder and its line in `FAMILIES`. Whatever follows from roles and blocks is not said here:
a format's names are listed by role in that format's folder, and a family states what is called otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..blocks import Branches, Norm
from ..config import ModelConfig
from ..config_fields import Fields
from ..errors import UsageError
from ..roles import Role
from .places import Part, Place

# What sentence-transformers keeps in a folder of its own, as mlx-vlm reads it beside the others.
PROJECTION = Place("1_Dense.linear.weight")

# Role -> where checkpoints keep it, the usual place first.
Places = Mapping[Role, Sequence[Place]]


@dataclass(frozen=True, kw_only=True)
class GgufNames:
    """What llama.cpp calls an architecture, and those of its tensors that are not called by their role.

    Its graph of an architecture is fixed. Of the weights that a block may have or lack it knows only those which it
    `demands` of every such block, and those which it `takes` where they are. If it `has_windows`, some layers with
    attention have one, and a rope of their own, while the ropes of the others are stored as factors. Only if it
    `has_free_heads` may they together be of another size than the hidden state. One that
    `gives_vectors` heeds what a file says of pooling, of a projection, and of tokens that see later ones.
    `first_build` is that of llama.cpp which first had it, where that matters.
    """

    architecture: str
    tensors: Mapping[Role, str] = field(default_factory=dict)
    demands: frozenset[Role] = frozenset()
    takes: frozenset[Role] = frozenset()
    has_windows: bool = False
    has_free_heads: bool = False
    gives_vectors: bool = False
    first_build: int = 0


@dataclass(frozen=True, kw_only=True)
class MlxNames:
    """Those tensors of a layer that mlx-lm does not call as the checkpoint does.

    `is_released` says whether a released mlx-lm has a class for the family; for others this house has one.
    """

    tensors: Mapping[Role, str] = field(default_factory=dict)
    is_released: bool = True


@dataclass(frozen=True, kw_only=True)
class OnnxNames:
    """What Transformers.js and onnxruntime-genai, which do not know the family, may take it for.

    A model type and, of its layers, those that are called otherwise there; their caches are the same.
    """

    model_type: str
    layer_types: Mapping[str, str] = field(default_factory=dict)


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

    `encoders` are the classes whose models give vectors. `aliases` are a config field's other spellings. `hub_fields` are the fields of a config as transformers' class of
    the family has them today, all given, whatever spelling the checkpoint uses.
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
    onnx: OnnxNames | None = None
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
