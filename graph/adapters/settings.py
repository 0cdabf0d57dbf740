"""What PEFT's `adapter_config.json` says of a LoRA adapter; what would change the arithmetic and is not known is refused.

Source: PEFT 0.21.2 `tuners/lora/config.py`, `tuners/lora/model.py`, `utils/other.py`.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..config_fields import Fields
from ..errors import Faults
from ..source.adapters import ADAPTER_CONFIG

_ALL_LINEAR = "all-linear"
# Initialisations that leave the base as it is: others take a part of each weight out of it.
_PLAIN_INITS = (None, True, False, "gaussian", "eva", "orthogonal")
# Kinds of LoRA whose product is another, by the field that asks for them.
_OTHER_KINDS: Mapping[str, str] = {
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "alora_invocation_tokens": "activated LoRA, which works from a token on",
    "arrow_config": "Arrow, which chooses among adapters",
    "kasa_config": "KaSA",
    "monteclora_config": "Monte Carlo LoRA",
    "velora_config": "VeLoRA",
    "layer_replication": "layers that are used twice",
}
_READ = {
    "base_model_name_or_path", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "use_dora",
    "target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "target_parameters",
    "modules_to_save", "trainable_token_indices", "fan_in_fan_out", "init_lora_weights",
}  # fmt: skip
# What says how an adapter was trained, or which tensors it has, which the tensors themselves tell.
_NEUTRAL = {
    "peft_type", "task_type", "inference_mode", "auto_mapping", "peft_version", "revision", "lora_dropout", "bias",
    "lora_bias", "ensure_weight_tying", "megatron_config", "megatron_core", "loftq_config", "eva_config",
    "corda_config", "lora_ga_config", "qalora_group_size", "runtime_config",
}  # fmt: skip
# Of a pattern that somebody else wrote: what is read at all, and how often it may repeat something.
_PATTERN = re.compile(r"[\w.\\^$|()\[\]*+?-]{1,200}")
_REPEATED_GROUP = re.compile(r"\)[*+?{]")
_MOST_REPEATS = 3


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Ranks and scalings by module, and which modules are meant. Patterns are matched with the ends of names."""

    base: str | None
    rank: int
    alpha: float
    ranks: Mapping[str, Any] = field(default_factory=dict)
    alphas: Mapping[str, Any] = field(default_factory=dict)
    is_rank_stabilised: bool = False
    is_dora: bool = False
    modules: Sequence[str] | None = None
    left_out: Sequence[str] | None = None
    layers: Sequence[int] | None = None
    parameters: Sequence[str] = ()
    saved: Sequence[str] = ()
    tokens: Mapping[str, Sequence[int]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def rank_of(self, module: str) -> int:
        """The rank that is declared for a module."""
        return int(_matched(self.ranks, module, self.rank))

    def scaling_of(self, module: str) -> float:
        """What the product of a module's two matrices is multiplied by."""
        rank, alpha = self.rank_of(module), float(_matched(self.alphas, module, self.alpha))
        return alpha / (math.sqrt(rank) if self.is_rank_stabilised else rank)

    def parameters_of(self, module: str, known: Sequence[str]) -> list[str]:
        """Those of the `known` tensors right below a module that are adapted as such, in their order."""
        if not self.parameters:
            return []
        below = [name for name in known if name.rpartition(".")[0] == module]
        return [name for name in below if any(name == t or name.endswith(f".{t}") for t in self.parameters)]

    def means(self, module: str, layer: int | None) -> bool:
        """Whether a linear module of a layer is to be adapted; False too where a pattern decides that."""
        if self.modules is None or self.left_out is None or (self.layers is not None and layer not in self.layers):
            return False
        return _is_named(module, self.modules) and not _is_named(module, self.left_out)


def _matched(patterns: Mapping[str, Any], module: str, default: Any) -> Any:
    """As PEFT matches: the first pattern that fits the end of a name, from a component on."""
    return next((value for key, value in patterns.items() if re.match(rf"(.*\.)?({key})$", module)), default)


def _is_named(module: str, names: Sequence[str]) -> bool:
    return any(name == _ALL_LINEAR or module == name or module.endswith(f".{name}") for name in names)


def read_settings(raw: Mapping[str, Any], faults: Faults) -> LoraSettings:
    """The settings in the object of an `adapter_config.json`; what is malformed or not supported is a fault."""
    read = Fields(raw, aliases={}, defaults={})
    _refuse_other_kinds(raw, read.faults)
    stabilised, dora = read.flag("use_rslora", False), read.flag("use_dora", False)
    if read.flag("fan_in_fan_out", False):
        read.notes.append("fan_in_fan_out is set: it has no meaning for this model's modules, and PEFT ignores it too")
    found = LoraSettings(
        base=_text(read, "base_model_name_or_path"),
        rank=read.number("r", int),
        alpha=read.number("lora_alpha", float, least=-(2**40)),
        ranks=_patterns(read, "rank_pattern", lambda value: isinstance(value, int) and value > 0),
        alphas=_patterns(read, "alpha_pattern", lambda value: isinstance(value, int | float)),
        is_rank_stabilised=stabilised,
        is_dora=dora,
        modules=_names(read, "target_modules", none=()),
        left_out=_names(read, "exclude_modules", none=()),
        layers=_layers(read),
        parameters=tuple(read.items("target_parameters", str) or ()),
        saved=tuple(read.items("modules_to_save", str) or ()),
        tokens=_tokens(read),
        notes=tuple(read.notes),
    )
    for sentence in read.faults.sentences:
        faults.add(f"{ADAPTER_CONFIG}: {sentence}")
    return found


def _refuse_other_kinds(raw: Mapping[str, Any], faults: Faults) -> None:
    for key, words in _OTHER_KINDS.items():
        if raw.get(key):
            faults.add(f"{key} asks for {words}, which is not supported")
    init = raw.get("init_lora_weights")
    if init not in _PLAIN_INITS:
        faults.add(
            f"init_lora_weights is {init!r:.40}, which changes the base's own weights: have PEFT save it as a plain "
            "LoRA (path_initial_model_for_weight_conversion)"
        )
    unknown = [key for key, value in raw.items() if value and key not in _READ | _NEUTRAL | _OTHER_KINDS.keys()]
    for key in unknown:
        faults.add(f"has '{key:.40}', which is not known here and may change what the adapter does")


def _text(read: Fields, key: str) -> str | None:
    found = read.value(key)
    if found is not None and not (isinstance(found, str) and found.isprintable()):
        read.faults.add(f"{key} is {found!r:.40}: expected a name")
        return None
    return found or None


def _patterns(read: Fields, key: str, is_valid: Callable[[Any], bool]) -> dict[str, Any]:
    kept = {}
    for pattern, value in read.table(key).items():
        if not is_valid(value) or isinstance(value, bool):
            read.faults.add(f"{key} gives '{pattern:.40}' {value!r:.40}: expected a number")
        elif not _is_readable(pattern):
            read.faults.add(f"{key} has the pattern '{pattern:.60}': expected a name, or a simpler expression")
        else:
            kept[pattern] = value
    return kept


def _is_readable(pattern: str) -> bool:
    """Whether a pattern compiles, and cannot take long to match a name."""
    repeats = sum(pattern.count(mark) for mark in "*+?")
    if not _PATTERN.fullmatch(pattern) or _REPEATED_GROUP.search(pattern) or repeats > _MOST_REPEATS:
        return False
    try:
        re.compile(rf"(.*\.)?({pattern})$")
    except re.error:
        return False
    return True


def _names(read: Fields, key: str, *, none: Sequence[str]) -> Sequence[str] | None:
    """Names of modules; None for an expression, which is PEFT's to match."""
    found = read.value(key)
    if found is None:
        return none
    if isinstance(found, str):
        return (found,) if found == _ALL_LINEAR else None
    return tuple(read.items(key, str) or ())


def _layers(read: Fields) -> Sequence[int] | None:
    found = read.value("layers_to_transform")
    if isinstance(found, int) and not isinstance(found, bool):
        return (found,)
    return None if not found else tuple(read.items("layers_to_transform", int) or ())


def _tokens(read: Fields) -> dict[str, Sequence[int]]:
    """Ids of trained tokens by the module of the table; '' stands for the embedding."""
    key = "trainable_token_indices"
    found = read.value(key)
    if found is None:
        return {}
    tables = found if isinstance(found, dict) else {"": found}
    for ids in tables.values():
        if not isinstance(ids, list) or not all(type(i) is int and i >= 0 for i in ids) or len(set(ids)) < len(ids):
            read.faults.add(f"{key} is {found!r:.60}: expected ids of tokens, each of them once")
            return {}
    return {str(module): tuple(ids) for module, ids in tables.items()}
