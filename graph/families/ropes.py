"""Reads the rope of a config: its settings, in any of their spellings, and the table that they mean.

transformers 4 keeps the base in `rope_theta` and everything else in `rope_scaling`; 5 keeps all in `rope_parameters`.
Source: transformers `modeling_rope_utils.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..blocks import Rope
from ..config_fields import Fields
from ..rotary import default_rope, linear_rope, llama3_rope, long_rope, proportional_rope, yarn_rope

Settings = Mapping[str, Any]

DEFAULT_THETA = 10_000.0
# Older names of a type.
_TYPES = {"su": "longrope", "mrope": "default"}
_TRAINED_LENGTH = "original_max_position_embeddings"
_SHARE = "partial_rotary_factor"


def rope_settings(read: Fields) -> Settings:
    """What a config says of its rope, as `rope_parameters` of transformers 5 would have it."""
    table = {**read.table("rope_parameters"), **read.table("rope_scaling")}
    if nested := sorted(key for key, value in table.items() if isinstance(value, Mapping)):
        read.faults.add(f"rope_parameters holds {', '.join(nested)}: expected one rope for all layers of this family")
    found = settled(table, theta=read.value("rope_theta"), default=DEFAULT_THETA)
    for key in (_SHARE, _TRAINED_LENGTH):  # which some configs have beside the table, and mean it
        if (beside := read.value(key)) is not None:
            found[key] = beside
    return found


def settled(table: Settings, *, theta: Any, default: float) -> dict[str, Any]:
    """A table with its type under one name, and with the base that is given beside it where it has none."""
    found = {key: value for key, value in table.items() if key != "type"}
    label = str(found.get("rope_type") or table.get("type") or "default")
    base = found.get("rope_theta")
    if base is None:
        base = default if theta is None else theta
    return {**found, "rope_type": _TYPES.get(label, label), "rope_theta": base}


def read_rope(read: Fields, settings: Settings, head_dim: int) -> Rope:
    """The table of a rope; a stand-in, with a fault, if its type is not known or a number of it is missing."""
    kind, theta = settings["rope_type"], read.checked("rope_theta", settings["rope_theta"], float)
    maker = _MAKERS.get(kind)
    if maker is None:
        read.faults.add(
            f"rope type '{kind}' is not known: expected {', '.join(_MAKERS)}; another rope needs its table in "
            "graph/rotary.py and its settings in graph/families/ropes.py"
        )
    share = read.checked(_SHARE, settings.get(_SHARE, 1.0), float, least=0)
    if not 0 < share <= 1:
        read.faults.add(f"{_SHARE} is {share}: expected more than 0 and at most 1")
    stand_in = Rope(theta=theta, inverse_frequencies=())
    if maker is None or read.faults:
        return stand_in
    rope = maker(_Given(read, settings, theta=theta, head_dim=head_dim, share=share))
    return stand_in if read.faults else rope


class _Given:
    """The settings of one rope, looked up by type."""

    def __init__(self, read: Fields, settings: Settings, *, theta: float, head_dim: int, share: float) -> None:
        self._read, self.settings = read, settings
        self.theta, self.head_dim, self.share = theta, head_dim, share

    def fault(self, sentence: str) -> None:
        self._read.faults.add(f"the rope of type '{self.settings['rope_type']}' {sentence}")

    @property
    def n_dims(self) -> int:
        """The part of a head that turns. Source: as `int(head_dim * partial_rotary_factor)` there."""
        n = int(self.head_dim * self.share)
        if n < 2 or n % 2:
            self._read.faults.add(f"{_SHARE} {self.share} of a head of {self.head_dim} is {n}: expected an even number")
            return 2
        return n

    def number(self, key: str, default: float | None = None, *, least: float = 0) -> float:
        found = self.settings.get(key)
        if found is None:
            if default is None:
                self.fault(f"lacks {key}")
            return 1.0 if default is None else default
        return float(self._read.checked(key, found, float, least=least))

    def optional(self, key: str) -> float | None:
        return None if self.settings.get(key) is None else self.number(key)

    @property
    def context(self) -> int:
        return int(self._read.number("max_position_embeddings", int))

    @property
    def trained_length(self) -> int:
        """The context before it was stretched."""
        return max(2, int(self.number(_TRAINED_LENGTH, self.context, least=1)))

    @property
    def factor(self) -> float:
        """How much it was stretched: given, or what the two contexts say."""
        return self.number("factor", self.context / self.trained_length, least=1e-6)

    def factors(self, key: str) -> list[float]:
        """A divisor for each pair that turns."""
        found, n = self.settings.get(key), self.n_dims // 2
        fits = isinstance(found, list) and len(found) == n
        if not fits or not all(type(item) in (int, float) and 0 < item < 2**40 for item in found or ()):
            self.fault(f"has another {key} than {n} numbers above zero, one for each pair")
            return [1.0] * n
        return [float(item) for item in found or ()]


def _llama3(given: _Given) -> Rope:
    low, high = given.number("low_freq_factor"), given.number("high_freq_factor")
    if not 0 < low < high:
        given.fault(f"has low_freq_factor {low} and high_freq_factor {high}: expected the second to be more")
        low, high = 1.0, 2.0
    return llama3_rope(
        given.theta,
        given.n_dims,
        factor=given.number("factor", least=1),
        low_freq_factor=low,
        high_freq_factor=high,
        trained_length=given.trained_length,
    )


def _yarn(given: _Given) -> Rope:
    for key in ("mscale", "mscale_all_dim"):
        if given.settings.get(key):
            given.fault(f"has {key}: expected attention_factor, or neither")
    if given.theta <= 1:
        given.fault(f"has rope_theta {given.theta}: expected more than 1")
        return default_rope(given.theta, given.n_dims)
    return yarn_rope(
        given.theta,
        given.n_dims,
        factor=given.factor,
        trained_length=given.trained_length,
        attention_factor=given.optional("attention_factor"),
        beta_fast=given.number("beta_fast", 32, least=1e-6),
        beta_slow=given.number("beta_slow", 1, least=1e-6),
        truncate=given.settings.get("truncate", True) is not False,
    )


def _long(given: _Given) -> Rope:
    return long_rope(
        given.theta,
        given.factors("short_factor"),
        given.factors("long_factor"),
        trained_length=given.trained_length,
        factor=given.factor,
        attention_factor=given.optional("attention_factor"),
    )


_MAKERS: dict[str, Callable[[_Given], Rope]] = {
    "default": lambda given: default_rope(given.theta, given.n_dims),
    "linear": lambda given: linear_rope(given.theta, given.n_dims, factor=given.number("factor", least=1e-6)),
    "llama3": _llama3,
    "yarn": _yarn,
    "longrope": _long,
    "proportional": lambda given: proportional_rope(given.theta, given.head_dim, given.share),
}
