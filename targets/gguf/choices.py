"""Which type each tensor of a file gets: the quant's mixture, and what the caller asks for instead.

| asked for | stored so |
|---|---|
| `token_embedding_type` | the embedding, tied or not; a row that does not fit is refused |
| `output_tensor_type` | the head, likewise; a tied embedding too, with fallbacks, unless another option decides it |
| `tensor_type`, REGEX=TYPE or ROLE=TYPE | tensors whose name matches or whose role it is, the first that does; with fallbacks |
| `pure` | every other matrix in the quant's own type |

Vectors, the router and the conv kernel stay float32 whatever is asked, and float quants know no `tensor_type`.
Source: llama.cpp `src/llama-quant.cpp`, `llama_tensor_get_type`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from ...convert.errors import UsageError
from ...convert.model.graph import Role, Weight
from ...quantize.policies.gguf import FLOATS
from ...quantize.policy import Choice, Policy, Rule
from .header import TYPE_IDS
from .names import tensor_name

_KEPT = "F32"


@dataclass(frozen=True)
class TypeRule:
    """Tensors whose name matches the pattern, or whose role is of that name, get this type."""

    pattern: re.Pattern[str]
    encoding: str

    def matches(self, weight: Weight) -> bool:
        name = tensor_name((weight.role, weight.layer))
        return bool(self.pattern.search(name)) or self.pattern.pattern == weight.role.value


def type_rules(texts: Iterable[str], stored: Iterable[Weight]) -> tuple[TypeRule, ...]:
    """The rules of `PATTERN=TYPE` texts.

    Raises: UsageError for one that cannot be understood or that no tensor of the file matches.
    """
    weights, rules = tuple(stored), []
    for text in texts:
        pattern, separator, name = text.rpartition("=")
        try:
            rule = TypeRule(re.compile(pattern.lower()), type_name(name))
        except re.error as error:
            raise UsageError(f"--tensor-type {text}: '{pattern}' is not a regular expression: {error}") from None
        if not separator or not any(rule.matches(weight) for weight in weights):
            raise UsageError(f"--tensor-type {text}: expected ROLE_OR_REGEX=TYPE that matches a tensor, found none")
        rules.append(rule)
    return tuple(rules)


def type_name(name: str) -> str:
    """A type's own name, whatever its case. Raises UsageError listing those there are."""
    if name.upper() not in TYPE_IDS:
        raise UsageError(f"unknown type '{name}': expected one of {', '.join(TYPE_IDS)}")
    return name.upper()


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Chooses the type of each tensor; `mixture` is the quant's policy."""

    mixture: Policy
    is_tied: bool
    is_pure: bool = False
    rules: tuple[TypeRule, ...] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None

    def of(self, weight: Weight) -> Choice:
        """Raises UsageError for a type that the rows do not fit and that has no fallback."""
        head = Weight(Role.LM_HEAD, None, weight.view)
        # a tied embedding is asked for as the head it also is
        usual = self.mixture.choose(head if weight.role is Role.EMBED and self.is_tied else weight)
        if usual.wanted == _KEPT:
            return usual
        exact = {Role.EMBED: self.token_embedding_type, Role.LM_HEAD: self.output_tensor_type}.get(weight.role)
        if exact:
            return self._as(exact, fallbacks=False).choose(weight)
        if self.mixture.name in FLOATS:
            return usual
        for rule in self.rules:
            if rule.matches(weight):
                return self._as(rule.encoding).choose(weight)
        if weight.role is Role.EMBED and self.is_tied and self.output_tensor_type and not self.is_pure:
            return self._as(self.output_tensor_type).choose(weight)
        return usual

    def _as(self, encoding: str, *, fallbacks: bool = True) -> Policy:
        return replace(self.mixture, rules=(Rule(encoding),), fallbacks=self.mixture.fallbacks if fallbacks else {})
