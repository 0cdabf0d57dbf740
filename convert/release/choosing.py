"""Where a release's files lie and who carries its steps out, as its user asks: chosen here, and nowhere else."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from ...graph.errors import LfmConvertError, UsageError
from ...graph.progress import SILENT, Progress
from ...graph.source.urls import Remote, is_url, open_url, scheme_of, told
from ..recipe.reading import Recipe
from .hands import Hands, InTurn
from .output import Folder, Output
from .prepared import DEFAULT_OUT


@contextmanager
def opened_output(recipe: Recipe, out: str | None = None) -> Iterator[Output]:
    """The output that was asked for, or the recipe's: a folder, or a store with a folder here that goes at the end.

    Raises: UsageError for a store that artifacts cannot be written to; as `open_url`, with the recipe's line if the URL is
    the recipe's.
    """
    if out is None and (recipe.out is None or not is_url(recipe.out)):
        yield Folder(recipe.seen(Path(recipe.out or DEFAULT_OUT)))
        return
    asked = out if out is not None else str(recipe.out)
    if not is_url(asked):
        yield Folder(Path(asked).expanduser())
        return
    try:
        found = _in_store(asked)
    except LfmConvertError as error:
        raise error if out is not None else recipe.text.blame(("out",), error) from None
    if isinstance(found, Folder):
        yield found
        return
    from .mirror import Mirror

    with TemporaryDirectory(prefix="lfm-release-") as name:
        yield Mirror(found, Path(name))


def _in_store(url: str) -> Folder | Remote:
    if scheme_of(url) == "hf":
        raise UsageError(
            f"{url}: a hub gets what was validated, all at once: write to a folder or another store, and send it with "
            "'release --publish' or 'lfm-convert publish'"
        )
    remote = open_url(url)
    if remote.here is not None:
        return Folder(remote.here)
    with told(url):
        remote.fs.exists(remote.path)
    return remote


def hands_of(
    output: Output,
    *,
    scheduler: str | None = None,
    publishes: bool = False,
    offline: bool = False,
    progress: Progress = SILENT,
) -> Hands:
    """A cluster's hands with a scheduler's address, else this process's.

    Raises: UsageError for what cannot be published from where it lies; as `DaskPool`.
    """
    if publishes and not output.is_here:
        raise UsageError(
            f"--publish: what is sent is read here, and the artifacts lie at {output.shown}: copy the folder, and send it "
            "with 'lfm-convert publish'"
        )
    if scheduler is not None:
        from .apart import Apart
        from .dask_pool import DaskPool

        return Apart(DaskPool(scheduler, progress=progress), offline=offline)
    if not output.is_here:
        from .apart import Apart, Here

        return Apart(Here(progress), offline=offline)
    return InTurn()
