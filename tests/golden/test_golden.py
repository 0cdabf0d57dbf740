"""The bytes of every target and quant are those kept in tests/golden/*.json; `write.py` there renews them.

Where libraries of other versions are installed, a difference says so: it may be theirs.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from golden.cases import Case, cases
from golden.measure import Measured, libraries, measure, measure_numbers
from golden.write import golden_file

CASES = cases()
FAST = [case for case in CASES if not case.is_slow]
SLOW = [case for case in CASES if case.is_slow]


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@cache
def _kept(target: str) -> dict[str, Any]:
    return json.loads(golden_file(target).read_text(encoding="utf-8"))


def _note(target: str) -> str:
    kept, found = _kept(target)["libraries"], libraries(target)
    changed = [f"{name} {kept.get(name)} → {found[name]}" for name in found if kept.get(name) != found[name]]
    return f"the kept bytes were made with other libraries: {', '.join(changed)}" if changed else ""


def differences(kept: Measured, found: Measured) -> list[str]:
    """What is no longer the same, a line each: numbers first, then files around the same numbers."""
    lines = []
    for quant in sorted(kept["quants"].keys() | found["quants"].keys()):
        old, new = kept["quants"].get(quant), found["quants"].get(quant)
        if old is None or new is None:
            lines.append(f"{quant}: {'not kept yet' if old is None else 'no longer written'}")
        elif old["numbers"] != new["numbers"]:
            lines.append(f"{quant}: the stored numbers differ")
        else:
            lines += [
                f"{quant}: the same numbers in another file, {name}" for name in _changed(old["files"], new["files"])
            ]
    return lines + [f"beside: {name}" for name in _changed(kept["beside"], found["beside"])]


def _changed(old: dict[str, str], new: dict[str, str]) -> list[str]:
    return sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))


@pytest.mark.parametrize("case", FAST, ids=lambda case: f"{case.target}:{case.name}")
def test_bytes(case: Case, scratch: Path) -> None:
    assert differences(_kept(case.target)["models"][case.name], measure(case, scratch)) == [], _note(case.target)


@pytest.mark.parametrize("case", SLOW, ids=lambda case: f"{case.target}:{case.name}")
def test_numbers_of_a_program(case: Case, scratch: Path) -> None:
    kept = _kept(case.target)["models"][case.name]["quants"]
    found = measure_numbers(case, scratch)
    assert found == {quant: entry["numbers"] for quant, entry in kept.items()}, _note(case.target)


@pytest.mark.slow
@pytest.mark.parametrize("case", SLOW, ids=lambda case: f"{case.target}:{case.name}")
def test_bytes_of_a_program(case: Case, scratch: Path) -> None:
    assert differences(_kept(case.target)["models"][case.name], measure(case, scratch)) == [], _note(case.target)


def test_nothing_is_kept_of_what_is_gone() -> None:
    for target in {case.target for case in CASES}:
        assert set(_kept(target)["models"]) == {case.name for case in CASES if case.target == target}


def test_a_difference_is_named() -> None:
    old = {"quants": {"Q4_0": {"numbers": "1", "files": {"a.gguf": "2"}}}, "beside": {"config.json": "3"}}
    other_file = {"quants": {"Q4_0": {"numbers": "1", "files": {"a.gguf": "x"}}}, "beside": {"config.json": "x"}}
    assert differences(old, old) == []
    assert differences(old, other_file) == ["Q4_0: the same numbers in another file, a.gguf", "beside: config.json"]
    other_numbers = {"quants": {"Q4_0": {"numbers": "x", "files": {"a.gguf": "x"}}}, "beside": {"config.json": "3"}}
    assert differences(old, other_numbers) == ["Q4_0: the stored numbers differ"]
    assert differences(old, {"quants": {}, "beside": {}}) == ["Q4_0: no longer written", "beside: config.json"]
