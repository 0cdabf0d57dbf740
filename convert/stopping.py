"""SIGINT and SIGTERM as an exception where the program stands, and what libraries make of it."""

from __future__ import annotations

from types import FrameType


class Stopped(BaseException):
    """SIGINT or SIGTERM, raised where the program stands, so that temporary files are removed on the way out.

    Not a KeyboardInterrupt, of which typer would keep nothing but the exit code.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    @property
    def code(self) -> int:
        """The exit code, as shells have it."""
        return 128 + self.number


# The signals of this run: a library in whose hands one ends may make an error of its own of it.
_heard: list[Stopped] = []


def on_signal(number: int, frame: FrameType | None) -> None:
    """The handler of both."""
    _heard.append(Stopped(number))
    raise _heard[-1]


def forget_signals() -> None:
    """Begins a run."""
    _heard.clear()


def as_heard(error: BaseException) -> BaseException:
    """The signal in whose wake an error came, with its notes: an extension that is imported says that it cannot be."""
    if not (_heard and isinstance(error, Exception)):
        return error
    for note in getattr(error, "__notes__", ()):
        _heard[-1].add_note(note)
    return _heard[-1]


def raise_if_heard(error: Exception) -> None:
    """For who goes on after an error: raises Stopped if it came of a signal."""
    found = as_heard(error)
    if found is not error:
        raise found from error
