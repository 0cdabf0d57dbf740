"""Options of targets: declared once, as fields of a target's class, and read by the command line, recipes and the API.

refine: bool = option(False, help="search for a lower error in the same format and size; takes longer")
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import Field, dataclass, field, fields
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from ..graph.errors import UsageError
from ..graph.units import parse_size

_KEY = "option"
_SIZE = "a size like 4.8GB, or bytes"
_EXPECTED = {
    bool: "true or false",
    int: "an integer",
    str: "a text that is not empty",
    tuple: "a list of texts, none of them empty",
}


@dataclass(frozen=True, kw_only=True)
class Option:
    """What is known of one option beside its name and default.

    `choices` are all its values; `least` is the smallest number allowed; `is_size` says that it is bytes, which texts
    give with a unit; of a file (`is_file`) manifests keep the name only; what is not `is_asked` no command line asks
    for under this name.
    """

    help: str
    metavar: str | None = None
    choices: Sequence[str] = ()
    least: int | None = None
    is_size: bool = False
    is_file: bool = False
    is_asked: bool = True


def option(default: Any, **about: Any) -> Any:
    """A field of a target's class that is an option; see `Option`."""
    return field(default=default, metadata={_KEY: Option(**about)})


def imatrix_option() -> Any:
    """The importance of columns, for every target that weighs by it."""
    return option(None, help="importance matrix, or statistics", metavar="FILE", is_file=True)


def refine_option() -> Any:
    """The longer search, for every target that has one."""
    return option(False, help="search for a lower error in the same format and size; takes longer")


def options_of(target: Any) -> dict[str, tuple[Field[Any], Option]]:
    """The options of a target, or of its class, by name."""
    return {each.name: (each, each.metadata[_KEY]) for each in fields(target) if _KEY in each.metadata}


def checked(name: str, target: Any, given: Mapping[str, Any]) -> dict[str, Any]:
    """The given options as a target takes them: sizes in bytes, lists as tuples.

    Raises: UsageError for an option that the target does not have, or a value that the option does not take.
    """
    known = options_of(target)
    unknown = sorted(set(given) - known.keys())
    if unknown:
        raise UsageError(f"target {name} has no option {flag(unknown[0])}")
    return {key: _checked(flag(key), *known[key], value) for key, value in given.items()}


def kind_of(each: Field[Any]) -> type:
    """What the values of an option are: bool, int, str, or tuple for texts of which several may be given."""
    if isinstance(each.default, bool | tuple):
        return type(each.default)
    return int if "int" in str(each.type) else str


def _checked(name: str, each: Field[Any], about: Option, value: Any) -> Any:
    if value is None and each.default is None:
        return None
    kind = kind_of(each)
    found: Any = tuple(value) if isinstance(value, list) else value
    if about.is_size and isinstance(value, str) and value:
        found = parse_size(value)
    if about.is_file and isinstance(value, PathLike):
        found = fspath(value)
    if not _is_of(kind, found):
        raise UsageError(f"{name} is {value!r}: expected {_SIZE if about.is_size else _EXPECTED[kind]}")
    if about.least is not None and found < about.least:
        raise UsageError(f"{name} {value}: expected at least {about.least}")
    if about.choices and found not in about.choices:
        raise UsageError(f"{name} is '{value}': expected one of {', '.join(about.choices)}")
    return found


def _is_of(kind: type, value: Any) -> bool:
    """Whether a value is of a kind, and no empty text."""
    if kind is tuple:
        return type(value) is tuple and all(_is_of(str, text) for text in value)
    return type(value) is kind and value != ""


def changed(target: Any) -> dict[str, Any]:
    """What was configured: the options that differ from their defaults. Of a file its name: no manifest tells where it
    lay.
    """
    found = {}
    for name, (each, about) in options_of(target).items():
        value = getattr(target, name)
        if value != each.default:
            found[name] = Path(value).name if about.is_file and value is not None else value
    return found


def flag(name: str) -> str:
    """`--token-embedding-type`."""
    return "--" + name.replace("_", "-")


def all_options(targets: Iterable[Any]) -> dict[str, tuple[Field[Any], Option, list[str]]]:
    """Every option of some targets by name, and the names of the targets that have it.

    Raises: ValueError if two targets declare an option of one name differently.
    """
    found: dict[str, tuple[Field[Any], Option, list[str]]] = {}
    for target in targets:
        for name, (each, about) in options_of(target).items():
            before = found.setdefault(name, (each, about, []))
            if (before[0].default, before[1]) != (each.default, about):
                raise ValueError(f"option {name} is declared twice: {before[1]} and {about}")
            before[2].append(target.name)
    return found
