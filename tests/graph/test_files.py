"""Hashes of files that others read, whatever the order they read in."""

from __future__ import annotations

import hashlib
import itertools
import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph import files
from lfm_convert.graph.files import RunningHash, fits_in_memory

DATA = np.random.default_rng(0).bytes(3_000_000)
STEP = 100_000
IN_ORDER = range(1000, len(DATA) - STEP, STEP)  # a header before, a rest behind


@pytest.fixture
def descriptor(tmp_path: Path) -> Iterator[int]:
    (tmp_path / "data").write_bytes(DATA)
    opened = os.open(tmp_path / "data", os.O_RDONLY)
    yield opened
    os.close(opened)


@pytest.mark.parametrize(
    ("starts", "n_hashed"),
    [
        (IN_ORDER, len(IN_ORDER) * STEP),
        (sorted([*IN_ORDER] * 2), len(IN_ORDER) * STEP),
        (IN_ORDER[::2], len(IN_ORDER[::2]) * STEP),
        (IN_ORDER[::-1], STEP),
        ([], 0),
        ([0, STEP // 2, 3 * STEP], 2 * STEP + STEP // 2),
    ],
    ids=["in order", "each twice", "every other", "backwards", "nothing read", "overlapping"],
)
def test_what_was_read_in_order_is_not_read_again(
    starts: Sequence[int], n_hashed: int, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_read, real = 0, os.pread

    def pread(file: int, n_bytes: int, at: int) -> bytes:
        nonlocal n_read
        data = real(file, n_bytes, at)
        n_read += len(data)
        return data

    monkeypatch.setattr(os, "pread", pread)
    running = RunningHash(descriptor, forgets=False)
    for start in starts:
        running.read(_fill, memoryview(bytearray(STEP)), start)
    assert running.result() == running.result() == hashlib.sha256(DATA).hexdigest()
    assert n_read == len(DATA) - n_hashed


@pytest.mark.parametrize("forgets", [False, True])
def test_what_is_hashed_leaves_memory_if_asked_once_others_have_read_it(
    forgets: bool, descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(files, "forget", lambda file, n_bytes: forgotten.append(n_bytes))
    monkeypatch.setattr(files, "_BEHIND_BYTES", 2 * STEP)
    running = RunningHash(descriptor, forgets=forgets)
    for start in (*range(0, 7 * STEP, STEP), 0):
        running.read(_fill, memoryview(bytearray(STEP)), start)
    assert forgotten == ([2 * STEP, 4 * STEP] if forgets else [])
    running.result()
    assert forgotten[2:] == ([len(DATA)] if forgets else [])


@pytest.mark.parametrize("starts", [range(0, len(DATA), STEP), [0, STEP, 12 * STEP, 13 * STEP]], ids=["all", "a gap"])
def test_the_disk_is_asked_ahead_for_each_byte_once_in_requests_that_it_takes_whole(
    starts: Sequence[int], descriptor: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []

    def advise(file: int, start: int, n_bytes: int, advice: int) -> None:
        assert (file, advice) == (descriptor, os.POSIX_FADV_WILLNEED)
        asked.append((start, start + n_bytes))

    monkeypatch.setattr(os, "posix_fadvise", advise)
    monkeypatch.setattr(files, "_AHEAD_BYTES", 4 * STEP)
    monkeypatch.setattr(files, "_ASKED_BYTES", 2 * STEP)
    monkeypatch.setattr(files, "_ASKED_AT_ONCE", STEP // 2)
    running = RunningHash(descriptor, forgets=False)
    for start in starts:
        running.read(_fill, memoryview(bytearray(STEP)), start)
        assert asked[-1][1] >= start + STEP + 2 * STEP
        assert asked[-1][1] <= start + STEP + 4 * STEP
    assert max(stop - start for start, stop in asked) == STEP // 2
    assert all(stop <= start for (_, stop), (start, _) in itertools.pairwise(asked))
    read = {
        start + STEP for start in starts
    }  # what follows the first reads and those behind a gap was not asked before
    assert all(stop == start or start in read for (_, stop), (start, _) in itertools.pairwise(asked))


def test_the_next_is_read_while_one_is_hashed_and_hashed_after_it(descriptor: int) -> None:
    running, hashed = RunningHash(descriptor, forgets=False), list[int]()
    is_hashing, is_read = threading.Event(), threading.Event()

    class Slow:
        def update(self, data: memoryview) -> None:
            hashed.append(data[0])
            is_hashing.set()
            assert is_read.wait(10)  # of the first: that the second is read meanwhile

    def fill(buffer: memoryview, start: int) -> None:
        buffer[:] = bytes([start]) * len(buffer)
        if start:
            is_read.set()

    running._digest = Slow()  # type: ignore[assignment]
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(running.read, fill, memoryview(bytearray(1)), 0)
        assert is_hashing.wait(10)
        pool.submit(running.read, fill, memoryview(bytearray(1)), 1).result(20)
        first.result(20)
    assert hashed == [0, 1]


def _fill(buffer: memoryview, start: int) -> None:
    buffer[:] = DATA[start : start + len(buffer)]


def test_a_file_on_the_disk_can_be_forgotten_and_read_again(descriptor: int) -> None:
    files.forget(descriptor, len(DATA))
    assert os.pread(descriptor, len(DATA), 0) == DATA


def test_half_of_the_memory_fits() -> None:
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert fits_in_memory(n_bytes // 2)
    assert not fits_in_memory(n_bytes // 2 + 1)
