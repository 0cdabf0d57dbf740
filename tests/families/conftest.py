"""After the peers of families: which family ran on which target, so that none is skipped in silence."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import Any

from support.family_configs import PUBLISHED

_TARGET = re.compile(r"tests/families/test_(\w+)_peers\.py")
# How the names of variants begin, the longer ones first.
_WORDS = {
    "qwen3-moe": "qwen3_moe", "qwen3": "qwen3", "llama": "llama", "smollm3": "smollm3", "granite 4": "granitemoehybrid",
    "granite-moe": "granitemoe", "granite": "granite", "gemma": "gemma3_text", "phi": "phi3",
}  # fmt: skip
_OUTCOMES = ("passed", "failed", "skipped")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Counts by family and file of what passed, failed and was skipped."""
    found: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for outcome in _OUTCOMES:
        for report in terminalreporter.stats.get(outcome, ()):
            place = _TARGET.search(report.nodeid)
            if place and (report.when == "call" or outcome == "skipped"):
                found[_family(report.nodeid)][place[1]].append(outcome)
    if not found:
        return
    targets = sorted({target for by_target in found.values() for target in by_target})
    terminalreporter.section("families and targets: passed / failed / skipped")
    width = max(map(len, found))
    terminalreporter.line(" ".join([" " * width, *(f"{target:>18}" for target in targets)]))
    for family, by_target in sorted(found.items()):
        cells = ["/".join(str(by_target[target].count(each)) for each in _OUTCOMES) for target in targets]
        terminalreporter.line(" ".join([family.ljust(width), *(f"{cell:>18}" for cell in cells)]))


def _family(nodeid: str) -> str:
    """The model type of the published model that a test's name has, else "all"."""
    case = nodeid.rpartition("[")[2]
    named = [name for name in PUBLISHED if name.lower() in case.lower()]
    if named:
        return str(PUBLISHED[max(named, key=len)]["model_type"])
    return next((kind for word, kind in _WORDS.items() if case.lower().startswith(word)), "all")
