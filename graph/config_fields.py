"""Reads a config's fields by type, and keeps all that is wrong with them for one report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .errors import Faults


class Fields:
    """Typed look-ups in a raw config that collect what is wrong instead of stopping at the first.

    `aliases` are other spellings of a field, which must agree with it where both are given; `defaults` are the values
    of fields that may be left out.
    """

    def __init__(
        self, raw: Mapping[str, Any], *, aliases: Mapping[str, Sequence[str]], defaults: Mapping[str, Any]
    ) -> None:
        self.raw = raw
        self._aliases, self._defaults = aliases, defaults
        self.faults = Faults()
        self.notes: list[str] = []

    def value(self, key: str) -> Any:
        """The value of a field under its own name or an alias; None if absent."""
        names = (key, *self._aliases.get(key, ()))
        given = {k: self.raw[k] for k in names if self.raw.get(k) is not None}
        default = None if any(k in self.raw for k in names) else self._defaults.get(key)
        first = next(iter(given.values()), default)
        if any(v != first for v in given.values()):
            pairs = " but ".join(f"{k} is {v}" for k, v in given.items())
            self.faults.add(f"{pairs}: these must agree")
        return first

    def number(self, key: str, kind: type, default: Any = None, *, least: float = 1) -> Any:
        found = self.value(key)
        if found is not None:
            return self.checked(key, found, kind, least=least)
        if default is None:
            self.faults.add(f"{key} is missing")
        return kind(1) if default is None else default

    def checked(self, key: str, found: Any, kind: type, *, least: float = 1) -> Any:
        """A value as a number of its kind; a stand-in of 1 and a fault if it is none, or out of range."""
        integral = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
        if isinstance(found, bool) or not isinstance(found, int | float) or (kind is int and not integral):
            self.faults.add(f"{key} is {found!r}: expected {'an integer' if kind is int else 'a number'}")
            return kind(1)
        if not least <= found <= 2**40:
            self.faults.add(f"{key} is {found}: expected {least} to 2^40")
            return kind(1)
        return kind(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self.value(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            self.faults.add(f"{key} is {found!r}: expected true or false")
            return default
        return found

    def items(self, key: str, kind: type) -> list[Any] | None:
        """A list of strings or integers; None if absent or, with a fault, anything else."""
        found = self.value(key)
        if found is None or (isinstance(found, list) and all(type(item) is kind for item in found)):
            return found
        self.faults.add(f"{key} is {found!r}: expected a list of {kind.__name__}")
        return None

    def table(self, key: str) -> Mapping[str, Any]:
        """A JSON object; empty if absent or, with a fault, anything else."""
        found = self.value(key)
        if found is None or isinstance(found, Mapping):
            return found or {}
        self.faults.add(f"{key} is {found!r}: expected an object")
        return {}

    def token_ids(self, key: str, *, vocab_size: int) -> tuple[int, ...]:
        """One id or a list of them, each a row of the embedding; none, with a fault, if they are anything else."""
        found = self.value(key)
        ids = found if isinstance(found, list) else [] if found is None else [found]
        if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
            self.faults.add(f"{key} is {found!r}: expected token ids below vocab_size {vocab_size}")
            return ()
        return tuple(ids)

    def token_id(self, key: str, *, vocab_size: int) -> int | None:
        """The first of `token_ids`."""
        return next(iter(self.token_ids(key, vocab_size=vocab_size)), None)
