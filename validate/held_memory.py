"""How much memory a process and its children hold beside the files they map, while they run."""

from __future__ import annotations

import time

import psutil

# Looking for children costs some milliseconds of a processor.
_EVERY_S = 0.25


class HeldMemory:
    """The memory of one process and its descendants: what they have of their own, not what they share with files.

    `peak` is the most that was seen, in bytes; None if the system would not tell. Where it does not tell files apart,
    as on macOS, all resident memory counts.
    """

    def __init__(self, process_id: int) -> None:
        self._id = process_id
        self._next_look = 0.0
        self._held: int | None = None
        self.peak: int | None = None

    def look(self) -> int | None:
        """Bytes held now, as of the last quarter of a second."""
        if time.monotonic() >= self._next_look:
            self._next_look = time.monotonic() + _EVERY_S
            self._held = _held(self._id)
            if self._held is not None:
                self.peak = max(self.peak or 0, self._held)
        return self._held


def _held(process_id: int) -> int | None:
    try:
        process = psutil.Process(process_id)
        family = [process, *process.children(recursive=True)]
    except psutil.Error:
        return None
    total = 0
    for each in family:
        try:
            total += _private(each.memory_info())
        except psutil.Error:  # ended meanwhile
            continue
    return total


def _private(memory: object) -> int:
    """Of psutil's `memory_info`, whose fields are the system's."""
    private: int = getattr(memory, "private", 0)  # Windows
    return private or int(getattr(memory, "rss", 0)) - int(getattr(memory, "shared", 0))
