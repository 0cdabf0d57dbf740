"""Sizes as people write them."""

from __future__ import annotations

import re

from .errors import UsageError

_FACTORS = {
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
}


def parse_size(text: str) -> int:
    """Bytes of `4.8GB` (decimal), `700MiB` (binary) or `123456B`.

    A number alone is refused: people who write 4.8 do not mean 4 bytes.
    Raises: UsageError for anything else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*", text)
    factor = _FACTORS.get(match[2].upper()) if match else None
    if match is None or factor is None:
        raise UsageError(f"size '{text:.40}' {_fault(match)}; write it like 4.8GB, 700MiB or 123456B")
    n_bytes = float(match[1]) * factor
    if not n_bytes < 2**63:  # more than any disk, and beyond float a number of digits alone
        raise UsageError(f"size '{text:.40}' is beyond what a file can have")
    return int(n_bytes)


def _fault(match: re.Match[str] | None) -> str:
    return "has no unit" if match and not match[2] else "is not understood"


def exact_size(n_bytes: int) -> str:
    """`4.6GB`, as short as `parse_size` gives back the very number: decimal units, or bytes."""
    for unit in ("GB", "MB", "KB"):
        text = f"{n_bytes / _FACTORS[unit]:g}{unit}"
        if n_bytes >= _FACTORS[unit] and "e" not in text and parse_size(text) == n_bytes:
            return text
    return f"{n_bytes}B"


def format_size(n_bytes: int) -> str:
    """`4.71 GB`: decimal units, three significant digits."""
    value = float(n_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000 or unit == "GB":
            digits = 0 if unit == "B" else max(0, 3 - len(str(int(value))))
            return f"{value:.{digits}f} {unit}"
        value /= 1000
    raise AssertionError("unreachable")
