"""Folders and files that a URL names, such as `s3://BUCKET/FOLDER`, by fsspec; what fails there is told in one sentence."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import BackendError, InputError, LfmConvertError, NetworkError, UsageError, needs_extra

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://.")
# What a store tells of a file beside its size that changes with its content, the surest first.
_STAMPS = ("ETag", "etag", "md5Hash", "checksum", "crc32c", "sha256", "blob_id", "LastModified", "mtime", "created")


def is_url(text: str) -> bool:
    """Whether a text names something in a store and not a path of this machine."""
    return _URL.match(text) is not None


def scheme_of(url: str) -> str:
    """`s3` of `s3://BUCKET/FOLDER`."""
    found = _URL.match(url)
    return found[1].lower() if found else ""


@dataclass(frozen=True)
class Remote:
    """A place in a store: `url` as the user writes it, `path` as the store does."""

    url: str
    path: str
    fs: Any = field(repr=False, compare=False)

    def __truediv__(self, name: str) -> Remote:
        """A place below it."""
        return Remote(f"{self.url.rstrip('/')}/{name}", f"{self.path.rstrip('/')}/{name}", self.fs)

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rstrip("/").rpartition("/")[2]

    @property
    def here(self) -> Path | None:
        """The path of a place that is on this machine's own file system; None of any other."""
        return Path(self.path) if scheme_of(self.url) == "file" else None


def open_url(url: str) -> Remote:
    """The place that a URL names; nothing is looked for there yet.

    Raises: UsageError for a scheme that nobody knows, BackendError for one whose package is not installed, NetworkError
    for a store that cannot be opened.
    """
    with needs_extra("cluster", f"{url}: a URL"):
        from fsspec.core import url_to_fs
        from fsspec.implementations.local import LocalFileSystem
        from fsspec.registry import known_implementations, registry
    scheme = scheme_of(url)
    if scheme == "file":  # of which a path is no chain of stores, whatever marks it has
        return Remote(url, LocalFileSystem._strip_protocol(url), LocalFileSystem())
    if scheme not in known_implementations and scheme not in registry:
        raise UsageError(f"{url}: no store is known by {scheme}://: expected one like s3://, gs://, hf:// or file://")
    try:
        # Stores keep what they have listed, and others write there meanwhile.
        fs, path = url_to_fs(url, use_listings_cache=False, skip_instance_cache=scheme != "memory")
    except ImportError as error:
        package = str(known_implementations[scheme]["class"]).partition(".")[0]
        raise BackendError(
            f"{url}: {scheme}:// needs the package '{package}', which is not installed: pip install {package}"
        ) from error
    except Exception as error:
        raise unreachable(url, error) from error
    return Remote(url, path, fs)


@contextmanager
def told(url: str) -> Iterator[None]:
    """What fails in a store, whose libraries raise what they like, as one sentence.

    Raises: InputError for what is not there, NetworkError for anything else; failures of ours as they are.
    """
    try:
        yield
    except LfmConvertError:
        raise
    except FileNotFoundError:
        raise InputError(f"{url}: not found") from None
    except Exception as error:
        raise unreachable(url, error) from error


def unreachable(url: str, error: BaseException) -> NetworkError:
    """The sentence for a store that does not do what it is asked."""
    reason = " ".join(str(error).split()) or type(error).__name__
    if "credential" in reason.lower():
        return NetworkError(f"{url}: there are no credentials for it here, by which its store knows who asks: {reason}")
    if isinstance(error, PermissionError):
        return NetworkError(f"{url}: the store refuses: {reason}")
    return NetworkError(f"{url}: cannot be reached: {reason}")


def stamp_of(info: Mapping[str, Any]) -> list[Any]:
    """What of a file changes with its content, by what the store tells of it: its size, and the surest mark there is."""
    mark = next((info[key] for key in _STAMPS if info.get(key) is not None), "")
    return [info.get("size"), str(mark)]
