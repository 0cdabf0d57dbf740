"""The recipe's keys as JSON Schema, for editors, and as the tables of its page.

python -m lfm_convert.convert.recipe.schema        # writes both into docs/, in a source tree
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import Field
from pathlib import Path
from typing import Any

from ...targets.options import Option, kind_of, options_of
from ...targets.target import get_target, target_names
from .keys import ARTIFACTS, RECIPE, Form, Key, Table
from .kinds import SIZE

_DIALECT = "https://json-schema.org/draft/2020-12/schema"
# Where the tables stand in docs/recipe.md.
_START, _END = "<!-- keys: written by lfm_convert.convert.recipe.schema -->\n", "<!-- end of keys -->\n"
_VALUES: Mapping[type, Mapping[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    str: {"type": "string", "minLength": 1},
    tuple: {"type": "array", "items": {"type": "string", "minLength": 1}},
}


def schema() -> dict[str, Any]:
    """What a recipe may be, but for what one key says of another."""
    title = "lfm-convert.toml: what is released, and what it is held to"
    return {"$schema": _DIALECT, "title": title, **_table(RECIPE)}


def _table(table: Table) -> dict[str, Any]:
    """One table, whose form is its parent's to say."""
    found: dict[str, Any] = {"type": "object"}
    if not table.is_open:
        found["properties"] = {key.name: _key(key) for key in table.keys}
        found["properties"] |= {below.key: _form(below) for below in table.tables}
        found["additionalProperties"] = _by_name(table) if table.by_name else False
    needed = [key.name for key in table.keys if key.is_needed]
    if needed:
        found["required"] = needed
    if table.at_least_one:
        found["anyOf"] = [{"required": [name]} for name in table.at_least_one]
    if table is ARTIFACTS:
        found["allOf"] = [_of_target(name) for name in target_names()]
    return found


def _form(table: Table) -> dict[str, Any]:
    about = {"description": _sentence(table.help)}
    if table.form is Form.NAMED:
        return {**about, "type": "object", "additionalProperties": _table(table)}
    if table.form is Form.LIST:
        return {**about, "type": "array", "items": _table(table)}
    return {**about, **_table(table)}


def _by_name(table: Table) -> dict[str, Any]:
    """The table of the same keys for one name."""
    keys = {key.name: _key(key) for key in table.keys}
    return {"type": "object", "properties": keys, "additionalProperties": False, "minProperties": 1}


def _key(key: Key) -> dict[str, Any]:
    without = f" Without it: {key.default}." if key.default else ""
    return {"description": f"{_sentence(key.help)}.{without}", **key.kind.schema}


def _of_target(name: str) -> dict[str, Any]:
    """What else holds where the target is this one: its options, and its quants as examples, whatever their case."""
    target = get_target(name)
    quants = {"items": {"examples": [policy.name for policy in target.policies]}}
    options = {option: _option(*each) for option, each in options_of(target).items()}
    of_options = {"properties": options, "additionalProperties": False}
    return {
        "if": {"properties": {"target": {"const": name}}},
        "then": {"properties": {"quants": quants, "options": of_options}},
    }


def _option(each: Field[Any], about: Option) -> dict[str, Any]:
    found: dict[str, Any] = dict(SIZE.schema if about.is_size else _VALUES[kind_of(each)])
    if about.choices:
        found["enum"] = list(about.choices)
    if about.least is not None and not about.is_size:
        found["minimum"] = about.least
    return {"description": f"{_sentence(about.help)}.", **found}


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def page(text: str) -> str:
    """The page with the tables of all keys in their place. Raises: ValueError if the page has no place for them."""
    before, start, rest = text.partition(_START)
    _, end, after = rest.partition(_END)
    if not (start and end):
        raise ValueError("the page has no place for the tables of keys")
    return f"{before}{start}\n{_tables()}\n{end}{after}"


def _tables() -> str:
    parts = []
    for table in RECIPE.walk():
        heading = {Form.LIST: f"[[{table.name}]]"}.get(table.form, f"[{table.name}]")
        title = f"`{heading}`" if table.name else "Before any table"
        more = f", and `[{table.by_name}]`" if table.by_name else ""
        parts.append(f"### {title}{more}\n\n{_sentence(table.help)}.\n")
        if table.keys:
            rows = [f"| `{key.name}` | {key.kind.words} | {_cell(key)} |" for key in table.keys]
            parts.append("\n".join(["| key | value | what it is |", "|---|---|---|", *rows]) + "\n")
    return "\n".join(parts)


def _cell(key: Key) -> str:
    """What a key is, that it is needed, or what holds without it."""
    rest = "; needed" if key.is_needed else f"; without it: {key.default}" if key.default else ""
    return re.sub(r"([|<>])", r"\\\1", f"{key.help}{rest}")


def write(docs: Path) -> None:
    """Writes the schema, and the tables into their page."""
    (docs / "recipe.schema.json").write_text(json.dumps(schema(), indent=1, ensure_ascii=False) + "\n", "utf-8")
    (docs / "recipe.md").write_text(page((docs / "recipe.md").read_text("utf-8")), "utf-8")


if __name__ == "__main__":
    write(Path(__file__).resolve().parents[2] / "docs")
