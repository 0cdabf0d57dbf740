"""Which type each tensor of a file gets: the quant's mixture, and what the caller asks for instead.

| asked for | stored so |
|---|---|
| `token_embedding_type` | the embedding, tied or not; a row that does not fit is refused |
| `output_tensor_type` | the head, likewise; a tied embedding too, with fallbacks, unless another option decides it |
| `tensor_type`, REGEX=TYPE or ROLE=TYPE | tensors whose name matches or whose role it is, the first that does; with fallbacks |
| `pure` | every other matrix in the quant's own type |

What the mixture keeps in float32 stays so whatever is asked, and float quants know no `tensor_type`.
Source: llama.cpp `src/llama-quant.cpp`, `llama_tensor_get_type`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from ...graph.dtypes import Float32
from ...graph.errors import UsageError
from ...graph.graph import Weight
from ...graph.roles import Address, Role
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding, get_encoding, ggml_types
from ...quantize.policies.gguf import FLOATS
from ...quantize.policy import Choice, Policy, Rule
from ..plans import Placement, TensorPlan
from .stored import Stored

_KEPT = "F32"


@dataclass(frozen=True)
class TypeRule:
    """Tensors whose name matches the pattern, or whose role is of that name, get this type."""

    pattern: re.Pattern[str]
    encoding: str

    def matches(self, tensor: Stored | TensorPlan) -> bool:
        is_role = tensor.role is not None and self.pattern.pattern == tensor.role.value
        return is_role or bool(self.pattern.search(tensor.name))


def type_rules(texts: Iterable[str], stored: Iterable[Stored]) -> tuple[TypeRule, ...]:
    """The rules of `PATTERN=TYPE` texts.

    Raises: UsageError for one that cannot be understood or that no tensor of the file matches.
    """
    tensors, rules = tuple(stored), []
    for text in texts:
        pattern, _, name = text.rpartition("=")
        if not pattern:  # an empty one would match every tensor
            raise UsageError(f"--tensor-type {text}: expected ROLE_OR_REGEX=TYPE")
        try:
            rule = TypeRule(re.compile(pattern.lower()), type_name(name))
        except re.error as error:
            raise UsageError(f"--tensor-type {text}: '{pattern}' is not a regular expression: {error}") from None
        if not any(rule.matches(tensor) for tensor in tensors):
            raise UsageError(f"--tensor-type {text}: expected ROLE_OR_REGEX=TYPE that matches a tensor, found none")
        rules.append(rule)
    return tuple(rules)


def type_name(name: str) -> str:
    """A type's own name, whatever its case. Raises UsageError listing those there are."""
    if name.upper() not in ggml_types():
        raise UsageError(f"unknown type '{name}': expected one of {', '.join(ggml_types())}")
    return name.upper()


@dataclass(frozen=True)
class Chosen:
    """A tensor of the file and what it is stored as. `importance` [experts, columns] is None where it is not known, or
    makes no difference."""

    tensor: Stored
    choice: Choice
    importance: Float32 | None = None

    @property
    def name(self) -> str:
        return self.tensor.name

    @property
    def view(self) -> TensorView:
        return self.tensor.view

    @property
    def encoding(self) -> Encoding:
        return self.choice.encoding

    @property
    def nbytes(self) -> int:
        """Bytes of its data, padding excluded."""
        return self.view.n_rows * self.encoding.row_nbytes(self.view.n_cols)

    def placed(self, path: str, offset: int) -> TensorPlan:
        return TensorPlan(
            name=self.name,
            role=self.tensor.role,
            layer=self.tensor.layer,
            shape=self.view.shape,
            encoding=self.encoding,
            view=self.view,
            placements=(Placement(path, offset),),
            importance=self.importance,
            others=self.tensor.others,
        )


@dataclass(frozen=True, kw_only=True)
class Choices:
    """Chooses the type of each tensor; `mixture` is the quant's policy, `allotted` are types by address that take the
    place of the mixture's.
    """

    mixture: Policy
    is_tied: bool
    is_pure: bool = False
    rules: tuple[TypeRule, ...] = ()
    token_embedding_type: str | None = None
    output_tensor_type: str | None = None
    allotted: Mapping[Address, str] = field(default_factory=dict)

    def is_asked(self, tensor: Stored | TensorPlan) -> bool:
        """Whether the caller named the type of a tensor."""
        table = self.output_tensor_type if self.is_tied else None
        exact = {Role.EMBED: self.token_embedding_type or table, Role.LM_HEAD: self.output_tensor_type}
        is_named = tensor.role is not None and exact.get(tensor.role) is not None
        return is_named or any(rule.matches(tensor) for rule in self.rules)

    def of(self, tensor: Stored) -> Choice:
        """Raises UsageError for a type that the rows do not fit and that has no fallback."""
        if tensor.role is None:
            return Choice(_KEPT, get_encoding(_KEPT), None)
        weight = Weight(tensor.ruled_as or tensor.role, tensor.layer, tensor.view)
        head = Weight(Role.LM_HEAD, None, tensor.view)
        # a tied embedding is asked for as the head it also is
        usual = self.mixture.choose(head if weight.role is Role.EMBED and self.is_tied else weight)
        if usual.wanted == _KEPT:
            return usual
        exact = {Role.EMBED: self.token_embedding_type, Role.LM_HEAD: self.output_tensor_type}.get(weight.role)
        if exact:
            return self._as(exact, fallbacks=False).choose(weight)
        if self.mixture.name in FLOATS:
            return usual
        if (given := self.allotted.get((tensor.role, tensor.layer))) is not None:
            return self._as(given, fallbacks=False).choose(weight)
        for rule in self.rules:
            if rule.matches(tensor):
                return self._as(rule.encoding).choose(weight)
        if weight.role is Role.EMBED and self.is_tied and self.output_tensor_type and not self.is_pure:
            return self._as(self.output_tensor_type).choose(weight)
        return usual

    def _as(self, encoding: str, *, fallbacks: bool = True) -> Policy:
        return replace(self.mixture, rules=(Rule(encoding),), fallbacks=self.mixture.fallbacks if fallbacks else {})
