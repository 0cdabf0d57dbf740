"""The time that documents carry."""

from __future__ import annotations

import os
from datetime import UTC, datetime

from .errors import UsageError

_EPOCH = "SOURCE_DATE_EPOCH"


def utc_stamp() -> str:
    """Now, or what SOURCE_DATE_EPOCH says in its place: `2026-11-26T10:32:43Z`.

    Raises: UsageError for a SOURCE_DATE_EPOCH that is no time. Source: reproducible-builds.org/specs/source-date-epoch.
    """
    given = os.environ.get(_EPOCH)
    try:
        found = datetime.now(UTC) if given is None else datetime.fromtimestamp(int(given), UTC)
    except (ValueError, OverflowError, OSError):
        raise UsageError(f"{_EPOCH} is '{given:.40}': expected seconds since 1970") from None
    return found.strftime("%Y-%m-%dT%H:%M:%SZ")
