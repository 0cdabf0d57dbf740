"""Stored results that later ones are held to: a file of means by prompt, keyed by model, target, quant, options and
runtime.

An absolute limit cannot tell a good artifact of a tolerant model from a bad one of a sensitive model; the last
release's own numbers can. How many threads ran is no part of the key: a machine with other cores has the same artifact.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..graph.errors import InputError
from .gates import GateResult, at_least, at_most
from .metrics import mean_and_error
from .outputs import write_report
from .results import ArtifactResult, Held, Report, Verdict

_SCHEMA = 2
_WITH_THREADS = 1  # the schema of before, whose keys tell how many
_THREADS = re.compile(r", \d+ threads?$")
# Options that say only where an artifact lies, and that name a file.
_PLACE, _FILE = "outfile", "imatrix"
_ERRORS = 2.0
# Relative; runtimes add up in another order on another day.
_ROUNDING = 1e-3

# Of one artifact by prompt: positions, and their mean divergence in nats.
Means = Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class Baseline:
    """The entries of a baseline file, and what there is to say of it."""

    entries: Mapping[str, Means] = field(default_factory=dict)
    note: str = ""


def key_of(model: str, result: ArtifactResult) -> str:
    """`MODEL | gguf | Q4_0, imatrix | llama.cpp … CPU`."""
    artifact = result.artifact
    options = (_named(*each) for each in sorted(artifact.options.items()) if each[0] != _PLACE)
    quant = ", ".join([artifact.quant, *options])
    return _without_threads(" | ".join((model, artifact.target, quant, result.backend)))


def _named(option: str, value: Any) -> str:
    """An option as a key has it: by its name alone where the value is a file's, which another release calls otherwise."""
    return option if value is True or option == _FILE else f"{option}={json.dumps(value)}"


def _without_threads(key: str) -> str:
    return _THREADS.sub("", key)


def load_baseline(path: Path) -> Baseline:
    """A baseline file; of one whose keys tell threads, the entries without them, of several of a key the furthest off:
    each of them was good enough. Raises: InputError if it is missing or malformed.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["schema"] not in (_SCHEMA, _WITH_THREADS):
            raise ValueError(f"schema {data['schema']!r}: expected {_SCHEMA}")
        entries: dict[str, Means] = {}
        for key, prompts in data["entries"].items():
            means = {prompt: (int(n), float(kld)) for prompt, (n, kld) in prompts.items()}
            name = _without_threads(key)
            entries[name] = max(entries.get(name, means), means, key=_mean)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not a baseline file: {error}") from None
    if data["schema"] == _SCHEMA:
        return Baseline(entries)
    note = f"{path}: was keyed by threads, too, which are left out; --update-baseline writes it as it is read now"
    return Baseline(entries, note)


def _mean(means: Means) -> float:
    return sum(n * kld for n, kld in means.values()) / max(1, sum(n for n, _ in means.values()))


def update_baseline(path: Path, report: Report) -> None:
    """Stores every artifact that passes, keeping entries of others. Raises: InputError, DiskError."""
    entries = dict(load_baseline(path).entries) if path.exists() else {}
    for result in report.results:
        if result.verdict is Verdict.PASS and (means := _means(result)):
            entries[key_of(report.model, result)] = means
    text = json.dumps({"schema": _SCHEMA, "entries": dict(sorted(entries.items()))}, indent=1, ensure_ascii=False)
    write_report(path, text + "\n")


def hold_to_baseline(report: Report, baseline: Baseline, *, require: bool = False) -> Report:
    """The report with a gate more for every artifact that was measured: no worse than its entry by over two errors.

    One without an entry says so, and with `require` fails: a new version of a runtime is another key, and must not end
    a comparison in silence. Raises: InputError if an entry is about other prompts.
    """
    return report.with_results(
        _held(result, baseline, key_of(report.model, result), require=require) for result in report.results
    )


def _held(result: ArtifactResult, baseline: Baseline, key: str, *, require: bool) -> ArtifactResult:
    measured = result.metrics or result.vectors
    if measured is None or not measured.finite:
        return result
    stored = baseline.entries.get(key)
    if stored is not None:
        gate = _gate(result, measured.mean, stored)
        return replace(result.with_gates(gate), baseline=Held.HELD)
    unknown = f"no baseline entry: the baseline has no '{key}'; --update-baseline makes one"
    found = replace(result.with_note(unknown), baseline=Held.NO_ENTRY)
    if not require:
        return found
    return found.with_gates(at_least("baseline_entry", 0, 1, source="--require-baseline"))


def _means(result: ArtifactResult) -> Means:
    """Of each prompt how many positions, or vectors, and their mean divergence; empty if none was measured."""
    if result.vectors is not None:
        return {p.prompt: (p.n_vectors, 1 - p.cosine) for p in result.vectors.prompts}
    return {p.prompt: (p.n_positions, p.kld_mean) for p in result.metrics.prompts} if result.metrics else {}


def _gate(result: ArtifactResult, mean: float, stored: Means) -> GateResult:
    now, name = _means(result), result.artifact.label
    if {key: n for key, (n, _) in now.items()} != {key: n for key, (n, _) in stored.items()}:
        raise InputError(f"{name}: its baseline was made with other prompts; --update-baseline makes it anew")
    groups: Sequence[Any] = [np.full(n, kld - stored[key][1]) for key, (n, kld) in now.items()]
    worse, error = mean_and_error(groups)
    allowed = (_ERRORS * error if error == error else 0.0) + _ROUNDING * mean
    source = f"the stored baseline: {_ERRORS:g} standard errors of paired prompts, and {_ROUNDING:.1%} of the mean"
    what = "kld" if result.vectors is None else "distance"
    return at_most(f"{what}_over_baseline", worse, allowed, source=source)
