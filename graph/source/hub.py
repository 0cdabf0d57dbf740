"""Fetches files of a hub repository into its local cache."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..config import CONFIG_FILE
from ..errors import InputError, NetworkError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def fetch(repo: str, patterns: Sequence[str], *, revision: str | None, offline: bool, **options: Any) -> Path:
    """The snapshot folder with the repository's files that match one of the patterns.

    `options` go to huggingface_hub as they are: token, cache_dir, force_download.
    Raises: NetworkError if the hub or the files cannot be reached; InputError for an id that no repository can have.
    """
    from huggingface_hub import snapshot_download

    offline = offline or is_offline()
    with _explained(repo, revision, offline=offline):
        found = snapshot_download(
            repo, revision=revision, allow_patterns=list(patterns), local_files_only=offline, **options
        )
    return Path(found)


def list_files(
    repo: str, *, revision: str | None, offline: bool, token: Any = None, cache_dir: Any = None
) -> list[str]:
    """Paths of the repository's files; offline, those that the cache holds.

    Raises: NetworkError as `fetch`.
    """
    from huggingface_hub import HfApi

    if offline or is_offline():
        # Asked for more than one file, huggingface_hub insists on all that the repository has.
        folder = fetch(repo, [CONFIG_FILE], revision=revision, offline=True, cache_dir=cache_dir)
        return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
    with _explained(repo, revision, offline=False):
        return sorted(HfApi().list_repo_files(repo, revision=revision, token=token))


def snapshot_of(folder: Path) -> tuple[str, str] | None:
    """Repository and commit of a snapshot in the hub's cache; None for any other folder."""
    cache, kind, commit = ("", "", "", *folder.absolute().parts)[-3:]
    if kind != "snapshots" or not cache.startswith("models--"):
        return None
    return cache.removeprefix("models--").replace("--", "/", 1), commit


def is_offline() -> bool:
    """What HF_HUB_OFFLINE says now: huggingface_hub reads it once, when it is imported."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")


@contextmanager
def _explained(repo: str, revision: str | None, *, offline: bool) -> Iterator[None]:
    """Failures of huggingface_hub as one sentence each."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    try:
        yield
    except LocalEntryNotFoundError:
        what = f"its revision '{revision}' (--revision)" if revision else "it"
        reason = "" if offline else "the hub cannot be reached and "
        command = f"hf download {repo}" + (f" --revision {revision}" if revision else "")
        raise NetworkError(
            f"{repo}: {reason}{what} is not in the local cache; fetch it with '{command}' or name a local folder"
        ) from None
    except RevisionNotFoundError:
        raise NetworkError(f"{repo}: the hub has no revision '{revision}' of it (--revision)") from None
    except RepositoryNotFoundError:
        raise NetworkError(f"{repo}: the hub has no such repository, or it needs 'hf auth login'") from None
    except HFValidationError as error:
        raise InputError(f"{repo}: not a hub id: {error}") from None
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(f"{repo}: download failed: {error}") from None
