"""Pieces of numpy work on all cores, each with a BLAS of one thread.

Widening weights, exponentials and small products run on one core otherwise, and a BLAS with threads of its own waits
for them between calls. Pieces are cut by size and never by the number of threads, so that results do not depend on it.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from functools import cache
from typing import Any

from threadpoolctl import ThreadpoolController

from ..dtypes import Float32

Range = tuple[int, int]

# Of a piece of rows: what stays in a core's cache.
_PIECE_ELEMENTS = 3 << 17


def cut(n: int, step: int) -> list[Range]:
    """0 … n as ranges of `step`, the last of them shorter."""
    return [(low, min(low + step, n)) for low in range(0, n, step)]


def by_rows(x: Float32) -> list[Range]:
    """Ranges of the first axis that stay in a core's cache."""
    return cut(len(x), max(1, _PIECE_ELEMENTS * len(x) // x.size))


def each(work: Callable[[int, int], None], pieces: Sequence[Range]) -> None:
    """Calls `work(low, high)` for every piece, in any order; raises what the first of them raises."""
    with _one_blas_thread() as n_threads:
        todo = iter(pieces)

        def drain() -> None:
            for low, high in todo:
                work(low, high)

        # numpy's errstate is a context variable, which threads do not inherit
        n_helpers = min(n_threads, len(pieces)) - 1
        helpers = [_executor().submit(copy_context().run, drain) for _ in range(n_helpers)]
        try:
            drain()
        finally:
            errors = [helper.exception() for helper in helpers]
        for error in errors:
            if error is not None:
                raise error


@contextmanager
def _one_blas_thread() -> Iterator[int]:
    """Numpy's BLAS without threads of its own; yields how many it had, which is how many the process may use."""
    blas = _blas()
    with blas.limit(limits=1) as limiter:
        yield limiter.get_original_num_threads()["blas"] or os.cpu_count() or 1


class SingleBlas:
    """Keeps numpy's BLAS to one thread while any thread is inside: for small products in threads that are many already,
    where a BLAS with threads of its own mostly waits for them.
    """

    def __init__(self) -> None:
        self._turn, self._n_inside = threading.Lock(), 0
        self._limiter: Any = None

    def __enter__(self) -> None:
        with self._turn:
            if self._n_inside == 0:
                self._limiter = _blas().limit(limits=1)
            self._n_inside += 1

    def __exit__(self, *error: object) -> None:
        with self._turn:
            self._n_inside -= 1
            if self._n_inside == 0:
                self._limiter.restore_original_limits()


SINGLE_BLAS = SingleBlas()


@cache
def _blas() -> ThreadpoolController:
    """The OpenBLAS that numpy brings; empty where numpy has another, which is then left alone."""
    return ThreadpoolController().select(internal_api="openblas")


@cache
def _executor() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="forward")
