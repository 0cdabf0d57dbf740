"""The names of quants whose encodings are allotted: `auto-4.6GB` by a size, `Q4_K_M-tuned` by the size of a named quant."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from ...graph.errors import UsageError
from ...graph.units import exact_size, parse_size

AUTO, BITS, CODES = "auto", "bits", "codes"
# What of a quant can be tuned.
TUNED = (BITS, CODES)
_TUNED = "-tuned"


@dataclass(frozen=True)
class Wanted:
    """What a name asks for: at most so many bytes, or as many as the quant `base` takes; the other is None."""

    max_bytes: int | None = None
    base: str | None = None

    @property
    def name(self) -> str:
        """Its own name, as plans and manifests have it."""
        return self.word if self.base is None else self.base + _TUNED

    @property
    def word(self) -> str:
        """What stands for it in names of files, which say by themselves that they are tuned."""
        return f"{AUTO}-{exact_size(self.max_bytes or 0)}" if self.base is None else self.base


def read_wanted(quant: str) -> Wanted | None:
    """What a name asks for; None of one that is no such name.

    Raises: UsageError for `auto` without a size, or with one that is not understood.
    """
    word = quant.strip().lower()
    if word == AUTO:
        raise UsageError(f"quant '{quant}' fills a size: give it, as --max-size 4.6GB or {AUTO}-4.6GB")
    if word.startswith(f"{AUTO}-"):
        return Wanted(max_bytes=parse_size(word.removeprefix(f"{AUTO}-")))
    if word.endswith(_TUNED):
        return Wanted(base=quant.strip()[: -len(_TUNED)])
    return None


def base_of(quant: str, auto_base: str) -> str:
    """The named quant that an allotted one has all else from, `auto_base` being that of sizes; a named one itself."""
    wanted = read_wanted(quant)
    return quant if wanted is None else wanted.base or auto_base


def named(quant: str, *, max_bytes: int | None = None, bits: bool = False) -> str:
    """A quant as it is named with the options beside it: `auto` with its size, and others tuned if `bits` are to be.

    Raises: UsageError as `read_wanted`.
    """
    if quant.strip().lower() == AUTO and max_bytes is not None:
        return Wanted(max_bytes=max_bytes).name
    if bits and quant == "all":
        raise UsageError(f"--tune={BITS}: name the quants whose bits are to be tuned, in place of all")
    return Wanted(base=quant).name if read_wanted(quant) is None and bits else quant


def check_tuned(tune: Collection[str]) -> None:
    """Raises: UsageError for what cannot be tuned."""
    for name in tune:
        if name not in TUNED:
            raise UsageError(f"--tune={name}: expected {' or '.join(TUNED)}")
