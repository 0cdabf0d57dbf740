"""Every failure a user can meet, with the exit code the command line ends with.

A message is one sentence that names the file or tensor, what was expected and what was found.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

# Faults of one kind that are told one by one.
_ALIKE = 8


class ExitCode(enum.IntEnum):
    """Exit codes of `lfm-convert` (docs/exit-codes.md)."""

    OK = 0
    INTERNAL = 1
    USAGE = 2
    QUALITY = 3
    BUDGET = 4
    BAD_INPUT = 5
    MISSING_BACKEND = 6
    DISK = 7
    NETWORK = 8
    INTERRUPTED = 130
    TERMINATED = 143


class LfmConvertError(Exception):
    """Base of all failures that are not bugs of ours."""

    exit_code = ExitCode.INTERNAL


class UsageError(LfmConvertError):
    """The request cannot be carried out as it was put."""

    exit_code = ExitCode.USAGE


class QualityError(LfmConvertError):
    """An artifact does not agree with its reference."""

    exit_code = ExitCode.QUALITY


class BudgetError(LfmConvertError):
    """An artifact is larger than its size budget."""

    exit_code = ExitCode.BUDGET


class InputError(LfmConvertError):
    """A checkpoint, config, tokenizer or artifact is not what it must be."""

    exit_code = ExitCode.BAD_INPUT


class BackendError(LfmConvertError):
    """A package or runtime that the request needs is not installed."""

    exit_code = ExitCode.MISSING_BACKEND


class DiskError(LfmConvertError):
    """The destination cannot hold or accept the files."""

    exit_code = ExitCode.DISK


class NetworkError(LfmConvertError):
    """A file must come from a hub, and the hub cannot be reached."""

    exit_code = ExitCode.NETWORK


class Faults:
    """Collects sentences, so that all faults of one input are reported together."""

    def __init__(self) -> None:
        self._sentences: list[str] = []

    def add(self, sentence: str) -> None:
        if sentence not in self._sentences:  # a field may be asked for more than once
            self._sentences.append(sentence)

    def add_alike(self, sentences: Sequence[str], together: str) -> None:
        """Adds each sentence, or of many, which have one cause, how many and the first: `12 tensors …, such as: …`."""
        if len(sentences) > _ALIKE:
            self.add(f"{len(sentences)} {together}, such as: {sentences[0]}")
        else:
            for sentence in sentences:
                self.add(sentence)

    def __bool__(self) -> bool:
        return bool(self._sentences)

    @property
    def sentences(self) -> list[str]:
        return list(self._sentences)

    def raise_if_any(self, where: str) -> None:
        """Raises InputError with every sentence, the first 20 in full."""
        if not self._sentences:
            return
        shown = self._sentences[:20]
        hidden = len(self._sentences) - len(shown)
        tail = f"; and {hidden} more" if hidden else ""
        raise InputError(f"{where}: " + "; ".join(shown) + tail)


@contextmanager
def needs_extra(extra: str, purpose: str) -> Iterator[None]:
    """Turns a failed import into the sentence that names the missing package and the pip line.

    Raises: BackendError for a missing third-party module; other failures pass through.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").split(".")[0]
        if package in ("", "lfm_convert"):
            raise
        raise BackendError(
            f"{purpose} needs the package '{package}', which is not installed: pip install \"lfm-convert[{extra}]\""
        ) from error
