"""Costs that were measured, kept beside the statistics they follow from.

    STATS/costs/TARGET.json     {"statistics": sha256, "encoders": sha256, "losses": {"ffn_gate.0": {"Q4_K": nats a token}}}

They hold as long as both hashes do: that of the statistics, and that of the source of every encoder. Of statistics that
nobody may write to, those of a shared disk, they are kept in this tool's cache, below the hash of the statistics.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from pathlib import Path

from ...graph.errors import InputError
from ...graph.files import replace_text
from ...graph.json_text import read_object
from ...graph.roles import Address
from ...graph.source.cache import cache_folder

_FOLDER = "costs"


@dataclass(frozen=True)
class KeptCosts:
    """The costs of a target's encodings: nats a token by weight and encoding; infinite where a value does not fit."""

    path: Path
    statistics_sha256: str
    losses: dict[str, dict[str, float]] = field(default_factory=dict)

    def get(self, address: Address, encoding: str) -> float | None:
        """None if it was not measured."""
        return self.losses.get(_key(address), {}).get(encoding)

    def add(self, address: Address, measured: Mapping[str, float]) -> None:
        self.losses.setdefault(_key(address), {}).update(measured)

    def save(self) -> None:
        """Raises: DiskError."""
        losses = {
            weight: {name: loss if math.isfinite(loss) else None for name, loss in sorted(each.items())}
            for weight, each in sorted(self.losses.items())
        }
        content = {"statistics": self.statistics_sha256, "encoders": encoders_sha256(), "losses": losses}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(self.path, json.dumps(content, indent=1) + "\n")


def read_costs(statistics: Path, sha256: str, target: str) -> KeptCosts:
    """What is kept in a folder of statistics of that hash; nothing of what was measured by others or with other encoders.

    Raises: InputError for a file that is not of this kind.
    """
    name = f"{target}.json"
    beside = statistics / _FOLDER / name
    is_writable = os.access(beside.parent if beside.parent.is_dir() else statistics, os.W_OK)
    kept = KeptCosts(beside if is_writable else cache_folder(_FOLDER) / sha256 / name, sha256)
    for path in dict.fromkeys((beside, kept.path)):
        if path.is_file():
            _read_into(kept.losses, path, sha256)
    return kept


def _read_into(losses: dict[str, dict[str, float]], path: Path, sha256: str) -> None:
    found = read_object(path)
    if (found.get("statistics"), found.get("encoders")) != (sha256, encoders_sha256()):
        return
    try:
        for weight, each in found["losses"].items():
            own = losses.setdefault(weight, {})
            own |= {str(k): math.inf if loss is None else _checked(loss) for k, loss in each.items()}
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: is no file of costs: {error!r:.120}") from None


def _checked(loss: float) -> float:
    if isinstance(loss, bool) or not float(loss) >= 0:
        raise ValueError(loss)
    return float(loss)


def _key(address: Address) -> str:
    role, layer = address
    return role.value if layer is None else f"{role.value}.{layer}"


@cache
def encoders_sha256() -> str:
    """Of the source of all encodings, and of what costs are computed by."""
    found = hashlib.sha256()
    encodings = files(__package__.rpartition(".")[0] + ".encodings").iterdir()
    for source in (files(__package__).joinpath("costs.py"), *sorted(encodings, key=lambda each: each.name)):
        if source.name.endswith(".py"):
            found.update(source.name.encode() + b"\0" + source.read_bytes())
    return found.hexdigest()
