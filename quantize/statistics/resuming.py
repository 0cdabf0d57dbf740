"""What an interrupted calibration leaves to the next: the sums after its last whole step, beside the residual streams.

One file of arrays in the scratch folder, written anew after each step and renamed into place.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.errors import InputError
from ...graph.roles import Address, find_role
from .borrowing import Loan
from .collector import Collector
from .sums import SquareSums

STATE_FILE = "state.npz"
_STEPS = "steps"
_SUMS = ("inputs", "borrowed_inputs", "gradients", "borrowed_gradients")
_LOANS, _LOAN = "loans", ("tokens", "shares", "weights")
_TOP = "top"  # of an address outside the layers


class Resuming:
    """The state of a calibration in its scratch folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / STATE_FILE

    def load(self, run: Collector) -> int:
        """Gives a run the sums that are there; returns how many steps they are of.

        Raises: InputError for a state that cannot be read.
        """
        if not self._path.is_file():
            return 0
        try:
            with np.load(self._path, allow_pickle=False) as state:
                arrays = {name: state[name] for name in state.files}
            n_steps = int(arrays.pop(_STEPS)[()])
            _give(run, arrays)
        except (OSError, ValueError, KeyError, EOFError) as error:
            raise InputError(f"{self._path}: cannot be read ({error}): run without --resume to start anew") from error
        return n_steps

    def save(self, run: Collector, n_steps: int) -> None:
        """Keeps the sums of so many steps."""
        part = self._path.with_suffix(".part.npz")
        arrays: dict[str, Any] = {_STEPS: np.array(n_steps), **dict(_taken(run))}
        np.savez(part, **arrays)
        part.replace(self._path)


def _taken(run: Collector) -> Iterator[tuple[str, NDArray[Any]]]:
    for kind in _SUMS:
        sums: SquareSums = getattr(run, kind)
        for what, arrays in (("sums", sums.sums), ("tokens", sums.tokens)):
            for address, array in arrays.items():
                yield f"{kind}/{what}/{_spelt(address)}", array
    for layer, loans in run.loans.items():
        yield f"{_LOANS}/{layer}", np.array(sorted(loans))
        for which, loan in loans.items():
            for field in _LOAN:
                yield f"{_LOANS}/{layer}/{which}/{field}", getattr(loan, field)


def _give(run: Collector, arrays: Mapping[str, NDArray[Any]]) -> None:
    for name, array in arrays.items():
        kind, *rest = name.split("/")
        if kind in _SUMS:
            what, role, layer = rest
            getattr(getattr(run, kind), what)[_address(role, layer)] = array
        elif len(rest) == 1:
            loans = {which: f"{name}/{which}" for which in array.tolist()}
            run.loans[int(rest[0])] = {
                which: Loan(*(arrays[f"{prefix}/{field}"] for field in _LOAN)) for which, prefix in loans.items()
            }


def _spelt(address: Address) -> str:
    role, layer = address
    return f"{role.value}/{_TOP if layer is None else layer}"


def _address(role: str, layer: str) -> Address:
    return find_role(role), None if layer == _TOP else int(layer)
