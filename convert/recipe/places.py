"""On which line of a TOML text a key stands, which tomllib does not tell.

A text that tomllib reads as a whole is a row of statements, each of which it reads alone, too, and none of which it reads
before its last line: a text or a list that is still open is a fault. So lines are taken until they can be read.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

# The keys that lead to a value, and of a list of tables the number of each from 0.
KeyPath = tuple[str | int, ...]


@dataclass(frozen=True)
class Places:
    """The lines of a text's keys, counted from 1."""

    lines: Mapping[KeyPath, int] = field(default_factory=dict)

    def line(self, path: KeyPath) -> int:
        """Where a key stands; of one that is not there, the table that it belongs to; 1 for the text itself."""
        return next((self.lines[path[:n]] for n in range(len(path), 0, -1) if path[:n] in self.lines), 1)


def find_places(text: str) -> Places:
    """The lines of all keys of a text that tomllib has read."""
    lines: dict[KeyPath, int] = {}
    n_tables: dict[KeyPath, int] = {}  # of each list of tables, so far
    table: KeyPath = ()
    for start, statement, found in _statements(text):
        if statement.startswith("["):
            (keys,) = _leaves(found)
            is_list = statement.startswith("[[")
            table = _numbered(keys[: -1 if is_list else None], n_tables)
            if is_list:
                n_tables[table] = n_tables.get(table, 0) + 1
                table = (*table, n_tables[table] - 1)
            lines.setdefault(table, start)
        else:
            for keys in _leaves(found):
                for n in range(1, len(keys) + 1):
                    lines.setdefault((*table, *keys[:n]), start)
    return Places(lines)


def _statements(text: str) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """The line each statement begins on, its text without comments before it, and what it says alone."""
    taken: list[str] = []
    for number, line in enumerate(text.replace("\r\n", "\n").split("\n"), start=1):
        taken.append(line)
        try:
            found = tomllib.loads("\n".join(taken))
        except tomllib.TOMLDecodeError:
            continue
        if found:
            yield number - len(taken) + 1, taken[0].lstrip(), found
        taken = []


def _leaves(found: Any) -> Iterator[KeyPath]:
    """The paths to what is no table with something in it; `[[a]]` alone is a list of one table."""
    if isinstance(found, dict) and found:
        for key, value in found.items():
            yield from ((key, *rest) for rest in _leaves(value))
    elif isinstance(found, list) and found and all(isinstance(each, dict) for each in found):
        for number, each in enumerate(found):
            yield from ((number, *rest) for rest in _leaves(each))
    else:
        yield ()


def _numbered(keys: KeyPath, n_tables: Mapping[KeyPath, int]) -> KeyPath:
    """A header's path, in which a list of tables means its last one."""
    path: KeyPath = ()
    for key in keys[:-1]:
        path = (*path, key)
        if path in n_tables:
            path = (*path, n_tables[path] - 1)
    return (*path, *keys[-1:])
