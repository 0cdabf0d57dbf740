"""Hashes of files that others read, whatever the order they read in."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
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
        with running.turn:
            running.saw(start, memoryview(DATA)[start : start + STEP])
    assert running.result() == running.result() == hashlib.sha256(DATA).hexdigest()
    assert n_read == len(DATA) - n_hashed


@pytest.mark.parametrize("forgets", [False, True])
def test_what_is_hashed_leaves_memory_if_asked(forgets: bool, descriptor: int, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten: list[int] = []
    monkeypatch.setattr(files, "forget", lambda file, n_bytes: forgotten.append(n_bytes))
    running = RunningHash(descriptor, forgets=forgets)
    for start in (0, STEP, 0):
        running.saw(start, memoryview(DATA)[start : start + STEP])
    assert forgotten == ([STEP, 2 * STEP] if forgets else [])


def test_a_file_on_the_disk_can_be_forgotten_and_read_again(descriptor: int) -> None:
    files.forget(descriptor, len(DATA))
    assert os.pread(descriptor, len(DATA), 0) == DATA


def test_half_of_the_memory_fits() -> None:
    n_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert fits_in_memory(n_bytes // 2)
    assert not fits_in_memory(n_bytes // 2 + 1)
