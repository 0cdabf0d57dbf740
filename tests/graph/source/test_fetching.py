"""A checkpoint that a URL names comes whole, once, and anew when it changes there."""

from __future__ import annotations

import itertools
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.source import find_model
from lfm_convert.graph.errors import BackendError, DiskError, InputError, LfmConvertError, NetworkError, UsageError
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source import cache, fetching
from lfm_convert.graph.source.fetching import fetch_url
from lfm_convert.graph.source.urls import is_url, open_url, told
from support.releases import tree
from support.s3 import upload

PATTERNS = ("*.json", "*.safetensors")


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(cache.PLACE, str(tmp_path / "cache"))
    return tmp_path / "cache" / "checkpoints"


@pytest.fixture
def url(tiny_dense: Path) -> Iterator[str]:
    """The tiny dense model in fsspec's memory."""
    found = f"memory://{uuid.uuid4().hex}/models/tiny-dense"
    upload(tiny_dense, found)
    yield found
    remote = open_url(found)
    remote.fs.rm(remote.path, recursive=True)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is opened in the store."""
    found: list[str] = []
    fs = type(open_url("memory://a").fs)
    opened = fs.open

    def noted(self: Any, path: str, *arguments: Any, **options: Any) -> Any:
        found.append(path)
        return opened(self, path, *arguments, **options)

    monkeypatch.setattr(fs, "open", noted)
    return found


def test_a_checkpoint_is_fetched_once(url: str, tiny_dense: Path, reads: list[str], home: Path) -> None:
    remote = open_url(url)
    remote.fs.pipe_file((remote / "pickle.bin").path, b"never fetched")
    folder = find_model(url).path
    assert tree(folder) == tree(tiny_dense)
    assert open_graph(folder).name == "tiny-dense"
    n_reads = len(reads)
    assert find_model(url).path == folder and len(reads) == n_reads
    remote.fs.pipe_file((remote / "config.json").path, (tiny_dense / "config.json").read_bytes() + b"\n")
    assert find_model(url).path != folder
    assert not list(home.glob("part-*"))


def test_one_that_is_incomplete_in_the_cache_is_fetched_again(url: str, tiny_dense: Path) -> None:
    folder = find_model(url).path
    (folder / "model.safetensors").write_bytes(b"cut short")
    assert tree(find_model(url).path) == tree(tiny_dense)


def test_what_changes_while_it_is_read_is_refused(url: str, monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    remote = open_url(url)
    info = type(remote.fs).info
    with monkeypatch.context() as patch:
        times = itertools.count()
        patch.setattr(type(remote.fs), "info", lambda self, path: {**info(self, path), "created": next(times)})
        with pytest.raises(NetworkError, match="unchanged while it was read"):
            fetch_url(url, PATTERNS)
    assert not [path for path in home.iterdir() if path.is_dir()]


def test_a_wrong_checksum_is_refused(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fs = type(open_url(url).fs)
    info = fs.info
    with monkeypatch.context() as patch:
        patch.setattr(fs, "info", lambda self, path: {**info(self, path), "md5Hash": "AAAA"})
        with pytest.raises(NetworkError, match="which is not what the store has of it"):
            fetch_url(url, PATTERNS)


def test_the_cache_is_bounded(tiny_dense: Path, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(cache.LIMIT, "1B")
    names = [f"memory://{uuid.uuid4().hex}/tiny-dense" for _ in range(3)]
    folders = []
    for name in names:
        upload(tiny_dense, name)
        folders.append(find_model(name).path.parent)
        assert folders[-1].is_dir()
    assert all(folder.is_dir() for folder in folders)  # used within the hour
    for folder in folders[:2]:
        os.utime(folder, (0, 0))
    cache.sweep(home, keep=folders[0])
    assert [folder.is_dir() for folder in folders] == [True, False, True]
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: _Usage())
    upload(tiny_dense, other := f"memory://{uuid.uuid4().hex}/tiny-dense")
    with pytest.raises(DiskError, match="and 0 B is free"):
        find_model(other)


class _Usage:
    free = 0


def test_a_file_url_is_a_folder(tiny_dense: Path, home: Path) -> None:
    assert find_model(tiny_dense.as_uri()).path == tiny_dense
    assert not home.exists()


@pytest.mark.parametrize(
    ("model", "options", "kind", "part"),
    [
        ("memory://no/such/model", {}, InputError, "holds no checkpoint"),
        ("file:///no/such/model", {}, InputError, "no such folder"),
        ("nothing://a/b", {}, UsageError, "no store is known by nothing://"),
        ("memory://a/b", {"revision": "main"}, UsageError, "is a URL, and says itself"),
        ("memory://a/b", {"offline": True}, NetworkError, "--offline asks none"),
        ("hf://org", {}, UsageError, "expected hf://ORG/NAME"),
        ("hf://datasets/org/name", {}, UsageError, "expected hf://ORG/NAME"),
    ],
)
def test_what_cannot_be_fetched(model: str, options: dict[str, Any], kind: type[LfmConvertError], part: str) -> None:
    with pytest.raises(kind, match=part):
        find_model(model, **options)


def test_a_package_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from fsspec.registry import known_implementations

    monkeypatch.setitem(known_implementations, "gs", {"class": "no_such_gcsfs.GCSFileSystem", "err": "install it"})
    with pytest.raises(BackendError, match=r"gs:// needs the package 'no_such_gcsfs', .*: pip install no_such_gcsfs"):
        open_url("gs://bucket/model")


def test_a_hub_s_url_is_the_hub_s_to_fetch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def fetch(repo: str, patterns: Any, **options: Any) -> Path:
        asked.append((repo, options["revision"]))
        return tmp_path

    monkeypatch.setattr(fetching, "fetch", fetch)
    for model in ("hf://org/name", "hf://org/name@v1", "hf://org/name@refs%2Fpr%2F1"):
        assert find_model(model).path == tmp_path
    assert asked == [("org/name", None), ("org/name", "v1"), ("org/name", "refs/pr/1")]


def test_a_path_is_no_url() -> None:
    assert not any(map(is_url, ("org/name", "./s3", "bundled:moe", "C:\\a", "/a/b", "s3:/a")))
    assert all(map(is_url, ("s3://a", "memory://a/b", "file:///a")))


@pytest.mark.parametrize(
    ("error", "kind", "part"),
    [
        (FileNotFoundError("a"), InputError, "s3://a: not found"),
        (PermissionError("Forbidden"), NetworkError, "s3://a: the store refuses: Forbidden"),
        (RuntimeError("Unable to locate\n credentials"), NetworkError, "no credentials for it here"),
        (ConnectionResetError("reset"), NetworkError, "s3://a: cannot be reached: reset"),
        (DiskError("as it is"), DiskError, "^as it is$"),
    ],
)
def test_what_fails_in_a_store_is_one_sentence(error: Exception, kind: type[LfmConvertError], part: str) -> None:
    with pytest.raises(kind, match=part), told("s3://a"):
        raise error
