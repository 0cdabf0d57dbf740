"""Reads a recipe, whole or not at all: what is not understood is refused with its file, line and key."""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

from ...graph.adapters.adapter import Adapting, adapting
from ...graph.errors import InputError, LfmConvertError, UsageError
from ...quantize.allotment.wanted import BITS, check_tuned, named
from ...targets.options import options_of
from ...targets.target import get_target, target_names
from ...validate.budgets import DeviceClass
from ...validate.lines import Lines, is_quant
from .keys import ARTIFACTS, GATES, RECIPE, Form, Table
from .places import KeyPath, Places, find_places

_EXPECTED = 'expected model = "FOLDER or hub id", [[artifacts]], or tables [devices.NAME] and [gates]'
_SHOWN = 40  # characters of a value
# The option by which targets take what was measured.
IMPORTANCE = "imatrix"


@dataclass(frozen=True, kw_only=True)
class Text:
    """The text of a recipe, and where its keys stand."""

    path: Path
    content: str = field(repr=False)

    @cached_property
    def _places(self) -> Places:
        return find_places(self.content)

    def where(self, key: KeyPath) -> str:
        """`lfm-convert.toml:12`."""
        return f"{self.path}:{self._places.line(key)}"

    def refuse(self, key: KeyPath, sentence: str, kind: type[LfmConvertError] = InputError) -> NoReturn:
        """Raises an error that begins with the place of a key."""
        raise kind(f"{self.where(key)}: {sentence}")

    def blame(self, key: KeyPath, error: LfmConvertError) -> LfmConvertError:
        """The same failure, with the key that it comes from."""
        return type(error)(f"{self.where(key)}: {dotted(key)}: {error}")


@dataclass(frozen=True, kw_only=True)
class ModelEntry:
    """One checkpoint of a recipe; `key` is where it is named, `label` what the recipe calls it."""

    key: KeyPath
    label: str
    model: str
    revision: str | None = None
    name: str | None = None
    token: str | None = None
    adapters: tuple[Path, ...] = ()
    adapter_weights: tuple[float, ...] = ()
    merge_dtype: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArtifactsEntry:
    """Some artifacts of one target, as `[[artifacts]]` asks for them. Units: bytes."""

    key: KeyPath
    target: str
    quants: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    folder: str | None = None
    label: str = ""
    calibrated: bool = False
    tune: tuple[str, ...] = ()
    strict: bool = False
    devices: tuple[str, ...] = ()
    max_size: int | None = None
    max_file_size: int | None = None
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What a recipe says; nothing where it is silent. Paths are seen from the recipe's folder, but for those of `inputs`,
    which lie elsewhere on this machine. `out` is a path or a URL.
    """

    text: Text
    model: str | None = None
    revision: str | None = None
    out: str | None = None
    models: Mapping[str, ModelEntry] = field(default_factory=dict)
    artifacts: tuple[ArtifactsEntry, ...] = ()
    calibration: Mapping[str, Any] | None = None
    validation: Mapping[str, Any] = field(default_factory=dict)
    devices: Mapping[str, DeviceClass] = field(default_factory=dict)
    lines: Lines = field(default_factory=Lines)
    reports: Mapping[str, Path] = field(default_factory=dict)
    publish: Mapping[str, Any] = field(default_factory=dict)
    inputs: Mapping[Path, Path] = field(default_factory=dict, repr=False)

    @property
    def path(self) -> Path:
        return self.text.path

    def seen(self, path: Path) -> Path:
        """A path of the recipe as the current folder sees it."""
        if path in self.inputs:
            return self.inputs[path]
        path = self.path.parent / path.expanduser()
        plain = Path(os.path.normpath(path))  # which behind a link may be another place
        return plain if plain.resolve() == path.resolve() else path

    def adapting(self, model: ModelEntry) -> Adapting:
        """The adapters of a model. Raises: as `adapting`."""
        return adapting([self.seen(path) for path in model.adapters], model.adapter_weights, model.merge_dtype)


def dotted(key: KeyPath) -> str:
    """`artifacts.options.refine`: the place of a key in words, without numbers of tables."""
    return ".".join(part for part in key if isinstance(part, str))


def load_recipe(path: Path) -> Recipe:
    """Reads a recipe, once and whole.

    Raises: InputError for what is malformed, UsageError for a target, quant, model or device class that there is not,
    naming file, line and key.
    """
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    return parse_recipe(path, content)


def parse_recipe(path: Path, content: str) -> Recipe:
    """The recipe of a text that was read from `path`, perhaps on another machine. Raises: as `load_recipe`."""
    try:
        found = tomllib.loads(content)
    except (ValueError, RecursionError) as error:
        line = re.search(r"\(at line (\d+)", str(error))
        where = f"{path}:{line[1]}" if line else path
        raise InputError(f"{where}: cannot be read as TOML: {error}") from None
    if not found:
        raise InputError(f"{path}: says nothing: {_EXPECTED}")
    text = Text(path=path, content=content)
    read = _read(text, RECIPE, found, ())
    models = _models(text, read)
    return Recipe(
        text=text,
        model=read.get("model"),
        revision=read.get("revision"),
        out=read.get("out"),
        models=models,
        artifacts=_artifacts(text, read, models),
        calibration=read.get("calibration"),
        validation=read.get("validation", {}),
        devices=_devices(text, read.get("devices", {})),
        lines=_lines(text, read.get("gates", {})),
        reports=read.get("reports", {}),
        publish=read.get("publish", {}),
    )


def _read(text: Text, table: Table, found: Any, key: KeyPath) -> dict[str, Any]:
    """The values of one table, each as its kind reads it. Raises: InputError, UsageError."""
    if not isinstance(found, dict):
        text.refuse(key, f"{_header(key)} is no table, but {_shown(found)}")
    if table.is_open:
        return found
    own = {each.name: each for each in table.keys}
    below = {each.key: each for each in table.tables}
    read: dict[str, Any] = {}
    for name, value in found.items():
        place = (*key, name)
        if name in own:
            read[name] = _value(text, table, name, value, place)
        elif name in below:
            read[name] = _read_form(text, below[name], value, place)
        elif table.by_name and isinstance(value, dict):
            read[name] = _read(text, _named(table), value, place)
        else:
            _refuse_unknown(text, key, name, [*own, *below])
    for each in table.keys:
        if each.is_needed and each.name not in read:
            text.refuse(key, f"{_header(key)} has no '{each.name}': expected {each.kind.words}")
    if table.at_least_one and not read.keys() & set(table.at_least_one):
        text.refuse(key, f"{_header(key)} sets no limit: expected {', '.join(own)}")
    return read


def _read_form(text: Text, table: Table, found: Any, key: KeyPath) -> Any:
    if table.form is Form.ONE:
        return _read(text, table, found, key)
    if table.form is Form.NAMED:
        if not isinstance(found, dict):
            text.refuse(key, f"{_header(key)} is no table, but {_shown(found)}: expected tables [{table.name}]")
        return {name: _read(text, table, value, (*key, name)) for name, value in found.items()}
    if not isinstance(found, list):
        text.refuse(key, f"'{dotted(key)}' is no list of tables: expected [[{table.name}]]")
    return [_read(text, table, value, (*key, number)) for number, value in enumerate(found)]


def _named(table: Table) -> Table:
    """The table of the same keys for one name, which must set one of them."""
    return Table(
        name=table.by_name, help=table.help, keys=table.keys, at_least_one=tuple(each.name for each in table.keys)
    )


def _value(text: Text, table: Table, name: str, value: Any, key: KeyPath) -> Any:
    kind = next(each.kind for each in table.keys if each.name == name)
    try:
        return kind.read(value)
    except LfmConvertError as error:
        text.refuse(key, f"{dotted(key)}: {error}")
    except (ValueError, OverflowError):
        text.refuse(key, f"{dotted(key)} is {_shown(value)}: expected {kind.words}")


def _refuse_unknown(text: Text, key: KeyPath, name: str, known: list[str]) -> NoReturn:
    near = difflib.get_close_matches(name, known, n=1)
    meant = f"did you mean '{near[0]}'? It may have" if near else "expected"
    whose = f"{_header(key)} has the unknown key" if key else "unknown key"
    text.refuse((*key, name), f"{whose} '{name:.{_SHOWN}}': {meant} {', '.join(known)}")


def _header(key: KeyPath) -> str:
    """`[devices.phone]`, `[[artifacts]]`."""
    return f"[[{dotted(key)}]]" if key and isinstance(key[-1], int) else f"[{dotted(key)}]"


def _shown(value: Any) -> str:
    """A value as TOML writes it, near enough."""
    if isinstance(value, bool):
        return str(value).lower()
    shown = repr(value)
    return shown if len(shown) <= _SHOWN else f"{shown[:_SHOWN]}…"


def _models(text: Text, read: Mapping[str, Any]) -> dict[str, ModelEntry]:
    """The checkpoints by the names that the recipe gives them."""
    tables = read.get("models", {})
    if "model" not in read:
        if "revision" in read:
            text.refuse(("revision",), "revision is of `model`, which is not given: put it into its [models.NAME]")
        return {label: ModelEntry(key=("models", label), label=label, **own) for label, own in tables.items()}
    if tables:
        text.refuse(("model",), f"model and [models.{next(iter(tables))}] are given: give one model, or only tables")
    model = read["model"]
    label = model.removeprefix("bundled:").rstrip("/").rpartition("/")[2] or model
    return {label: ModelEntry(key=("model",), label=label, model=model, revision=read.get("revision"))}


def _artifacts(text: Text, read: Mapping[str, Any], models: Mapping[str, ModelEntry]) -> tuple[ArtifactsEntry, ...]:
    found = []
    for number, table in enumerate(read.get("artifacts", ())):
        key: KeyPath = (ARTIFACTS.key, number)
        _refuse_unlisted(text, (*key, "target"), [table["target"]], target_names(), "target")
        _refuse_unlisted(text, (*key, "models"), table.get("models", ()), models, "model")
        _refuse_unlisted(text, (*key, "devices"), table.get("devices", ()), read.get("devices", {}), "device class")
        if table.get("calibrated") and "calibration" not in read:
            text.refuse((*key, "calibrated"), "artifacts.calibrated: there is no [calibration] that measures for it")
        _check_target(text, key, table)
        found.append(ArtifactsEntry(key=key, **table))
    if found and "calibration" in read and not any(each.calibrated for each in found):
        text.refuse(("calibration",), "[calibration] measures what no artifact uses: give one `calibrated = true`")
    return tuple(found)


def _check_target(text: Text, key: KeyPath, table: Mapping[str, Any]) -> None:
    """Quants and options as the target itself takes them. Raises: UsageError."""
    target = get_target(table["target"])
    try:
        place, tune = "tune", table.get("tune", ())
        check_tuned(tune)
        place = "quants"
        for name in table.get(place, ()):
            if name != "all":
                target.named(named(name, max_bytes=table.get("max_size"), bits=BITS in tune))
        place = "options"
        target.with_options(table.get(place, {}))
    except LfmConvertError as error:
        raise text.blame((*key, place), error) from None
    if table.get("calibrated") and IMPORTANCE not in options_of(target):
        text.refuse((*key, "calibrated"), f"artifacts.calibrated: target {target.name} weighs no columns", UsageError)


def _refuse_unlisted(text: Text, key: KeyPath, given: Any, known: Any, what: str) -> None:
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        names = ", ".join(known) or "none"
        text.refuse(key, f"{dotted(key)}: no {what} '{unknown:.{_SHOWN}}': expected some of {names}", UsageError)


def _devices(text: Text, tables: Mapping[str, Any]) -> dict[str, DeviceClass]:
    for name, table in tables.items():
        _refuse_unlisted(text, ("devices", name, "targets"), table.get("targets", ()), target_names(), "target")
    return {name: DeviceClass(name=name, **table) for name, table in tables.items()}


def _lines(text: Text, table: Mapping[str, Any]) -> Lines:
    own = {each.name: table[each.name] for each in GATES.keys if each.name in table}
    quants = {name: Lines(**lines) for name, lines in table.items() if isinstance(lines, dict)}
    for name in quants:
        if not is_quant(name):
            text.refuse(("gates", name), f"[gates.{name}]: no target has a quant '{name:.{_SHOWN}}'", UsageError)
    return Lines(**own, quants={name.casefold(): lines for name, lines in quants.items()})
