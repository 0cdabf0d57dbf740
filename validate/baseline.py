"""Stored results that later ones are held to: a file of means by prompt, keyed by model, target, quant and backend.

An absolute limit cannot tell a good artifact of a tolerant model from a bad one of a sensitive model; the last
release's own numbers can.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..convert.errors import InputError
from ..convert.files import replace_text
from .gates import GateResult, at_most
from .metrics import Metrics, mean_and_error
from .results import ArtifactResult, Report, Verdict

_SCHEMA = 1
_ERRORS = 2.0
# Relative; runtimes add up in another order on another day.
_ROUNDING = 1e-3

Stored = Mapping[str, Mapping[str, Any]]


def key_of(model: str, result: ArtifactResult) -> str:
    """`LFM2-1.2B | gguf | Q4_0 | llama.cpp … CPU, 4 threads`."""
    return " | ".join((model, result.artifact.target, result.artifact.quant, result.backend))


def load_baseline(path: Path) -> Stored:
    """The entries of a baseline file. Raises: InputError if it is missing or malformed."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] != _SCHEMA:
            raise ValueError(f"schema {data['schema']!r}: expected {_SCHEMA}")
        return {
            key: {p: (int(n), float(kld)) for p, (n, kld) in prompts.items()}
            for key, prompts in data["entries"].items()
        }
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a baseline file: {error}") from None


def update_baseline(path: Path, report: Report) -> None:
    """Stores every artifact that passes, keeping entries of others. Raises: InputError, DiskError."""
    entries = dict(load_baseline(path)) if path.exists() else {}
    for result in report.results:
        if result.verdict is Verdict.PASS and result.metrics is not None:
            entries[key_of(report.model, result)] = {
                p.prompt: (p.n_positions, p.kld_mean) for p in result.metrics.prompts
            }
    text = json.dumps({"schema": _SCHEMA, "entries": dict(sorted(entries.items()))}, indent=1, ensure_ascii=False)
    replace_text(path, text + "\n")


def hold_to_baseline(report: Report, baseline: Stored) -> Report:
    """The report with a gate more for every artifact that has an entry: no worse than it by over two errors.

    One without an entry says so: a new version of a runtime is another key, and must not end a comparison in silence.
    Raises: InputError if an entry is about other prompts.
    """
    results = [_held(result, baseline, key_of(report.model, result)) for result in report.results]
    return replace(report, results=tuple(results))


def _held(result: ArtifactResult, baseline: Stored, key: str) -> ArtifactResult:
    if not baseline or result.metrics is None or not result.metrics.finite:
        return result
    stored = baseline.get(key)
    if stored is None:
        unknown = f"the baseline has no entry '{key}'; --update-baseline makes one"
        return replace(result, message="; ".join(filter(None, [result.message, unknown])))
    gate = _gate(result.metrics, stored, result.artifact.label)
    gates = (*result.gates, gate)
    if gate.passed:
        return replace(result, gates=gates)
    message = "; ".join(filter(None, [result.message, gate.sentence]))
    return replace(result, gates=gates, verdict=Verdict.FAIL, message=message)


def _gate(metrics: Metrics, stored: Mapping[str, Any], name: str) -> GateResult:
    now = {p.prompt: (p.n_positions, p.kld_mean) for p in metrics.prompts}
    if {key: n for key, (n, _) in now.items()} != {key: n for key, (n, _) in stored.items()}:
        raise InputError(f"{name}: its baseline was made with other prompts; --update-baseline makes it anew")
    groups: Sequence[Any] = [np.full(n, kld - stored[key][1]) for key, (n, kld) in now.items()]
    worse, error = mean_and_error(groups)
    allowed = (_ERRORS * error if error == error else 0.0) + _ROUNDING * metrics.kld_mean
    source = f"the stored baseline: {_ERRORS:g} standard errors of paired prompts, and {_ROUNDING:.1%} of the mean"
    return at_most("kld_over_baseline", worse, allowed, source=source)
