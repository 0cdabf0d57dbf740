"""Why tensors and config do not fit: one sentence a cause, and of many tensors how many there are of each kind."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace

from .blocks import Mixture
from .config import ModelConfig
from .roles import Role
from .tensor import Shape, TensorView

# Tensors of one misfit that are told one by one; of more the kinds, if there are no more than so many.
_TOLD, _TOLD_KINDS = 8, 12
_NAMED = 3
_NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")
_EXPERT = re.compile(r".+\.experts\.(\d+)\..+")
_MLX_EXPERTS = ".switch_mlp."
# A sentence, and the tensors that it explains.
_Cause = tuple[str, Collection[str]]


@dataclass
class Misfits:
    """What a checkpoint lacks, has in another form than the config demands, and has over.

    The shape of what is `missing`, where it is known; of what is `misshapen` the expected and the found one; of what is
    `mistyped` the found type and the expected ones.
    """

    missing: dict[str, Shape | None] = field(default_factory=dict)
    misshapen: dict[str, tuple[Shape, Shape]] = field(default_factory=dict)
    mistyped: dict[str, tuple[str, str]] = field(default_factory=dict)
    left: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.missing or self.misshapen or self.mistyped or self.left)

    def sentences(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> list[str]:
        """The one cause that explains them, else what causes explain and each kind of what is left."""
        if not self:
            return []
        for whole in (self._mlx, self._other_model, self._dense):
            if (sentence := whole(config, tensors)) is not None:
                return [sentence]
        told, rest = [], self
        for cause in (Misfits._layers, Misfits._experts):
            if (found := cause(rest, config, tensors)) is not None:
                sentence, explained = found
                told.append(sentence)
                rest = rest.without(explained)
        return [*told, *rest._each_kind(config.family.layer_prefix)]

    def without(self, names: Collection[str]) -> Misfits:
        return replace(
            self,
            missing={name: shape for name, shape in self.missing.items() if name not in names},
            misshapen={name: shapes for name, shapes in self.misshapen.items() if name not in names},
            mistyped={name: dtypes for name, dtypes in self.mistyped.items() if name not in names},
            left=tuple(name for name in self.left if name not in names),
        )

    def add(self, others: Misfits) -> None:
        """Takes over the misfits of `others`, but for what is left."""
        self.missing |= others.missing
        self.misshapen |= others.misshapen
        self.mistyped |= others.mistyped

    @property
    def _names(self) -> tuple[str, ...]:
        return (*self.missing, *self.misshapen, *self.mistyped, *self.left)

    def _mlx(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> str | None:
        """mlx-lm keeps kernels channels last, and the experts of a layer in one tensor."""
        kernels = {name: shapes for name, shapes in self.misshapen.items() if len(shapes[0]) == 3}
        turned = bool(kernels) and all(found == (n, k, 1) != (n, 1, k) for (n, _, k), found in kernels.values())
        experts = next((name for name in self.left if _MLX_EXPERTS in name), None)
        if not turned and experts is None:
            return None
        tensor = experts or next(iter(kernels))
        return f"is saved for MLX (tensor '{tensor}'): convert the checkpoint it was made from"

    def _dense(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> str | None:
        """The tensors of a mixture of experts where the config has none."""
        if config.is_mixture or not any(_EXPERT.match(name) for name in self.left):
            return None
        return f"the config is a dense model's, the tensors have {len(_expert_numbers(tensors))} experts a layer"

    def _layers(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> _Cause | None:
        """Layers of one of them that the other lacks."""
        found = _count_layers(config, tensors)
        if found in (0, config.n_layers):
            return None
        between = range(min(found, config.n_layers), max(found, config.n_layers))
        norms = [config.family.tensor_name(Role.OPERATOR_NORM, i) for i in between]
        if not set(norms) <= (set(self.left) | self.missing.keys()):
            return None
        why = (
            "the config is another model's"
            if found > config.n_layers
            else "the weights are another model's, or not all"
        )
        prefixes = tuple(config.family.layer_prefix.format(layer=i) for i in between)
        return (
            f"the config describes {config.n_layers} layers, the tensors are of {found}: {why}",
            {name for name in self._names if name.startswith(prefixes)},
        )

    def _experts(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> _Cause | None:
        """Experts of one of them that the other lacks."""
        numbers, mixture = _expert_numbers(tensors), config.mixture
        if mixture is None:
            return None
        n_experts, found = mixture.n_experts, len(numbers)
        routed = {
            config.family.tensor_name(role, layer)
            for layer in config.of_kind(Mixture)
            for role in (Role.ROUTER, Role.EXPERT_BIAS)
        }
        routers = [name for name in self.misshapen if name in routed]
        if not routers or found == n_experts or numbers != set(range(found)):
            return None
        between = range(min(found, n_experts), max(found, n_experts))
        over = {name for name in self._names if (match := _EXPERT.match(name)) and int(match[1]) in between}
        return (
            f"the config describes {n_experts} experts, the tensors are of {found}: {self._shape(routers[0])}",
            {*routers, *over},
        )

    def _other_model(self, config: ModelConfig, tensors: Mapping[str, TensorView]) -> str | None:
        """Nothing fits by name: the weights of another architecture, or none at all."""
        if tensors and len(self.left) < len(tensors):
            return None
        found = f"found {', '.join(map(repr, self.left[:_NAMED]))}" if tensors else "the files hold no tensor"
        return f"holds none of the {len(self.missing)} tensors that the config describes: {found}"

    def _each_kind(self, prefix: str) -> list[str]:
        """The tensors of each misfit: one by one, or by what they are called below the `prefix` of a layer."""
        missing = {
            name: f"tensor '{name}' is missing" + (f" (expected shape {list(shape)})" if shape is not None else "")
            for name, shape in self.missing.items()
        }
        misshapen = {name: self._shape(name) for name in self.misshapen}
        mistyped = {
            name: f"tensor '{name}' is {found}: expected {expected}"
            for name, (found, expected) in self.mistyped.items()
        }
        left = {name: f"tensor '{name}' is not part of the model the config describes" for name in sorted(self.left)}
        return [
            *_few(missing, "are missing", prefix),
            *_few(misshapen, "have the wrong shape", prefix, first=True),
            *_few(mistyped, "are of the wrong type", prefix, first=True),
            *_few(left, "are not part of the model the config describes", prefix),
        ]

    def _shape(self, name: str) -> str:
        expected, found = self.misshapen[name]
        return f"tensor '{name}' has the wrong shape: expected {list(expected)}, found {list(found)}"


def _few(sentences: Mapping[str, str], what: str, prefix: str, *, first: bool = False) -> list[str]:
    """The sentences, or one in their place; `first` says that it gives the first."""
    names = list(sentences)
    if len(names) <= _TOLD:
        return list(sentences.values())
    told = f": {sentences[names[0]]}; others are {_kinds(names[1:], prefix)}" if first else f" {_kinds(names, prefix)}"
    return [f"{len(names)} tensors {what}, such as{told}"]


def _kinds(names: Iterable[str], prefix: str) -> str:
    """`'self_attn.gate_proj.weight' of 5 layers, 'model.embed_tokens.weight'`."""
    pattern = _layer_pattern(prefix)
    kinds: dict[str, set[str]] = {}
    for name in names:
        layer = pattern.match(name)
        kind = name[layer.end() :] if layer else name
        kinds.setdefault(_NUMBER.sub("N", kind), set()).update([layer[1]] if layer else [])
    told = [
        f"'{kind}'" + (f" of {len(layers)} layers" if len(layers) > 1 else f" of layer {min(layers)}" if layers else "")
        for kind, layers in kinds.items()
    ]
    if len(told) > _TOLD_KINDS:
        told = [*told[:_NAMED], f"and {len(told) - _NAMED} other kinds"]
    return ", ".join(told)


def _layer_pattern(prefix: str) -> re.Pattern[str]:
    """The prefix of a layer, with the layer's number."""
    return re.compile(re.escape(prefix).replace(r"\{layer\}", r"(\d+)"))


def _expert_numbers(tensors: Mapping[str, TensorView]) -> set[int]:
    """The numbers of experts that tensors have one by one."""
    return {int(match[1]) for name in tensors if (match := _EXPERT.match(name))}


def _count_layers(config: ModelConfig, tensors: Mapping[str, TensorView]) -> int:
    """Layers from 0 on of which none is left out; 0 if some is."""
    pattern = _layer_pattern(config.family.layer_prefix)
    numbers = {int(match[1]) for name in tensors if (match := pattern.match(name))}
    return len(numbers) if numbers == set(range(len(numbers))) else 0
