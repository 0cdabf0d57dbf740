"""Hashes of files while they are written in any order, and their way to the disk meanwhile."""

from __future__ import annotations

import hashlib
import os
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.targets import hashing
from lfm_convert.targets.hashing import WriteHashes

DATA = {name: np.random.default_rng(i).bytes(300_000 + i) for i, name in enumerate(("a", "b"))}
STEP = 10_000
PIECES = {name: [(at, min(at + STEP, len(data))) for at in range(100, len(data), STEP)] for name, data in DATA.items()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, data in DATA.items():
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(hashing, "_HASHED_BYTES", 2 * STEP)
    monkeypatch.setattr(hashing, "_FLUSHED_BYTES", 5 * STEP)
    return tmp_path


def _finish_all(hashes: WriteHashes, *, seed: int | None = None) -> None:
    pieces = [(name, *piece) for name in DATA for piece in PIECES[name]]
    if seed is not None:
        random.Random(seed).shuffle(pieces)
    for piece in pieces:
        hashes.finish(*piece)


@pytest.mark.parametrize("seed", [None, 0, 1])
def test_files_are_hashed_whatever_the_order_of_their_pieces(seed: int | None, folder: Path) -> None:
    with WriteHashes(folder, PIECES, forgets=True) as hashes:
        _finish_all(hashes, seed=seed)
    assert hashes.digests == {name: hashlib.sha256(data).hexdigest() for name, data in DATA.items()}


def test_files_are_flushed_as_they_grow_and_whole_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed, real = list[int](), os.fsync

    def fsync(file: int) -> None:
        flushed.append(os.fstat(file).st_ino)
        real(file)

    monkeypatch.setattr(os, "fsync", fsync)
    with WriteHashes(folder, PIECES, forgets=False) as hashes:
        _finish_all(hashes)
        assert hashes._flushes[0].result() is None  # before the end
    for name in DATA:  # of 30 pieces after every fifth, and once more
        assert flushed.count((folder / name).stat().st_ino) == 6


def test_files_are_hashed_on_while_one_is_flushed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    is_hashed = threading.Event()
    monkeypatch.setattr(os, "fsync", lambda file: None if is_hashed.wait(10) else pytest.fail("hashing waits"))
    real = hashing._Written.hash_to

    def hash_to(self: hashing._Written, stop: int) -> None:
        real(self, stop)
        if self.path.name == "b" and self.n_hashed == len(DATA["b"]):
            is_hashed.set()

    monkeypatch.setattr(hashing._Written, "hash_to", hash_to)
    with WriteHashes(folder, PIECES, forgets=False) as hashes:
        _finish_all(hashes)
    assert len(hashes.digests) == 2


def test_only_what_is_hashed_leaves_memory(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, n_bytes, advice: forgotten.append(n_bytes))
    with WriteHashes(folder, PIECES, forgets=True) as hashes:
        for piece in PIECES["a"][1:]:  # its start is missing
            hashes.finish("a", *piece)
        for flush in list(hashes._flushes):
            flush.result()
        assert len(hashes._flushes) == 5
        assert not forgotten  # of no bytes the system would take all to be meant
        hashes.finish("a", *PIECES["a"][0])
        for _ in range(1000):
            if hashes._files["a"].n_hashed == len(DATA["a"]):
                break
            time.sleep(0.01)
        for piece in PIECES["b"]:
            hashes.finish("b", *piece)
    assert len(DATA["a"]) in forgotten


def test_a_disk_that_fails_is_told_at_the_end(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(file: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"), WriteHashes(folder, PIECES, forgets=False) as hashes:
        _finish_all(hashes)


def test_after_a_fault_nothing_more_is_hashed_or_flushed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[int] = []
    monkeypatch.setattr(os, "fsync", flushed.append)
    with pytest.raises(ValueError, match="a worker's"), WriteHashes(folder, PIECES, forgets=False) as hashes:
        hashes.finish("a", *PIECES["a"][0])
        raise ValueError("a worker's")
    assert (flushed, hashes.digests) == ([], {})
