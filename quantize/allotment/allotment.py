"""Encodings that were allotted to weights one by one, as a target takes them in place of its quant's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ...graph.roles import Address, Role
from ..policy import Policy, Rule


@dataclass(frozen=True)
class Allotment:
    """The encoding of each weight by name; weights that are not named have what the quant says.

    `name` is what the artifact's quant is called, `word` what stands for it in names of files.
    """

    name: str
    word: str
    encodings: Mapping[Address, str] = field(repr=False, hash=False)

    def over(self, policy: Policy) -> Policy:
        """A quant's policy with these encodings before its rules."""
        layers: dict[tuple[str, Role], set[int | None]] = {}
        for (role, layer), encoding in self.encodings.items():
            layers.setdefault((encoding, role), set()).add(layer)
        own = [
            Rule(encoding, frozenset({role}), None if None in each else frozenset(n for n in each if n is not None))
            for (encoding, role), each in layers.items()
        ]
        return replace(policy, rules=(*own, *policy.rules))
