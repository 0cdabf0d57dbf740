"""What may be published: what was run, agrees with the checkpoint and fits its budgets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...graph.errors import BudgetError, QualityError
from ...validate.budgets import BudgetCheck
from ..manifest import Entry

_SHOWN = 200  # characters of why one failed


def refuse_unproven(folder: Path, entries: Sequence[Entry]) -> None:
    """Raises QualityError, or BudgetError if that is all, naming each artifact that may not be published, and how to
    go on.
    """
    bad = {entry["main_file"]: sentence for entry in entries if (sentence := _quality(entry))}
    over = {entry["main_file"]: sentence for entry in entries if (sentence := _budget(entry))}
    if not bad and not over:
        return
    n_good = len(entries) - len({*bad, *over})
    others = f"; --only publishes the other {n_good}" if n_good else ""
    sentence = f"{folder}: nothing was sent: {'; '.join([*bad.values(), *over.values()])}"
    if bad:
        raise QualityError(f"{sentence}; 'lfm-convert validate {folder} --reference MODEL' gives a verdict{others}")
    raise BudgetError(f"{sentence}; write a smaller quant, or validate again with another budget{others}")


def _quality(entry: Entry) -> str:
    found = entry["validation"]
    if found is None:
        return f"{entry['main_file']} has not been validated"
    verdict = found.get("verdict")
    if verdict == "pass":
        return ""
    why = str(found.get("message") or "no reason is noted")[:_SHOWN]
    return f"{entry['main_file']} {'failed its validation' if verdict == 'fail' else 'was not run'} ({why})"


def _budget(entry: Entry) -> str:
    found = entry["validation"] or {}
    if found.get("fit") != "over":
        return ""
    fields = ("name", "device", "value", "limit", "where")
    try:
        checks = [BudgetCheck(**{key: check[key] for key in fields}) for check in found["budgets"]]
        told = "; ".join(check.sentence for check in checks if not check.passed)
    except (KeyError, TypeError):  # of another version
        told = "by how much is not noted"
    return f"{entry['main_file']} is over its budget ({told})"
