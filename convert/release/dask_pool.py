"""A Dask cluster that carries out the jobs of a release: its scheduler chooses the worker, and tries another if one is lost.

The memory that a job takes is asked of the workers' resource `memory`, in bytes. Where no worker announces it, each has one
job at a time.
"""

from __future__ import annotations

import asyncio
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ...graph.errors import BackendError, ExitCode, LfmConvertError, NetworkError, UsageError, needs_extra
from ...graph.progress import SILENT, Progress
from ...graph.units import format_size
from .apart import Pool
from .child import in_child
from .errands import Errands
from .jobs import Job, failure
from .machines import demands_of, look, own_facts, refuse_missing, refuse_others
from .site import Site

RESOURCE = "memory"
_PATIENCE_S = 30.0  # for a scheduler, and for its first worker
_LOOK_S = 1.0  # at the longest between two signals heard
_STOP_S = 10.0  # for workers to end what they do

# Held by the job of a worker that announces no memory.
_alone = threading.Lock()


class DaskPool(Pool):
    """The cluster behind a scheduler's address. Raises: NetworkError where none answers; BackendError without Dask."""

    def __init__(self, address: str, *, progress: Progress = SILENT, patience_s: float = _PATIENCE_S) -> None:
        with needs_extra("cluster", "--scheduler"):
            from distributed import Client
        self._address, self._progress, self._patience_s = address, progress, patience_s
        self._futures: dict[str, Any] = {}
        self._queue: list[tuple[Job, int]] = []
        self._arrived = threading.Event()
        try:
            asyncio.run(_knock(address, patience_s))
            self._client = Client(address, timeout=patience_s, set_as_default=False, name="lfm-convert")
        except ValueError as error:
            raise UsageError(f"--scheduler {address}: expected an address like tcp://HOST:8786: {error}") from None
        except (OSError, TimeoutError) as error:
            reason = " ".join(str(error).split())
            raise NetworkError(f"--scheduler {address}: no Dask scheduler answers there: {reason}") from None
        self._announced: dict[str, int | None] = {}

    def check(self, errands: Errands, site: Site, memory: Mapping[str, int]) -> None:
        """Raises: NetworkError without workers; BackendError for one in another environment; UsageError for a step that
        no worker has the memory for; whatever a worker says that it misses.
        """
        workers = self._workers()
        found = self._client.get_versions(check=False)
        here = found["client"]["host"]["python"]
        for address, facts in sorted(found["workers"].items()):
            if facts["host"]["python"] != here:  # else nothing that is sent there could be trusted to be read
                raise BackendError(
                    f"worker {address}: has Python {facts['host']['python']}, here {here}: install on all machines what "
                    "is installed here"
                )
        demands = demands_of(site.preparation, errands.probe())
        answers = self._client.run(look, demands, on_error="return")
        for address, answer in sorted(answers.items()):
            if isinstance(answer, ModuleNotFoundError):
                raise BackendError(
                    f"worker {address}: lacks the package '{answer.name}': install on all machines what is installed here"
                )
            if isinstance(answer, BaseException):
                raise NetworkError(f"worker {address}: cannot be asked: {type(answer).__name__}: {answer}")
        refuse_others(answers, own_facts())
        refuse_missing(answers)
        self._announced = {address: _announced(worker) for address, worker in workers.items()}
        self._refuse_too_large(memory)
        silent = sum(each is None for each in self._announced.values())
        if silent and self._is_announced:
            self._progress.note(
                f"{silent} of {len(workers)} workers announce no memory, as others do, and are left out"
            )

    @property
    def _is_announced(self) -> bool:
        return any(each is not None for each in self._announced.values())

    def _workers(self) -> Mapping[str, Any]:
        try:
            self._client.wait_for_workers(1, timeout=self._patience_s)
        except TimeoutError:
            raise NetworkError(f"--scheduler {self._address}: the cluster has no workers") from None
        found: Mapping[str, Any] = self._client.scheduler_info(n_workers=-1)["workers"]
        return found

    def _refuse_too_large(self, memory: Mapping[str, int]) -> None:
        if not self._is_announced:
            return
        largest = max(each or 0 for each in self._announced.values())
        over = [label for label, n_bytes in memory.items() if n_bytes > largest]
        if over:
            worst = max(over, key=lambda label: memory[label])
            others = f", nor {len(over) - 1} more steps" if len(over) > 1 else ""
            raise UsageError(
                f"--scheduler {self._address}: {worst} takes {format_size(memory[worst])} of memory and fits no "
                f"worker{others}: the largest announces {format_size(largest)}"
            )

    def submit(self, job: Job, memory: int) -> None:
        self._queue.append((job, memory))
        self._send_off()

    def _send_off(self) -> None:
        """Sends jobs to the scheduler: all, or as many as there are workers, each of which has one at a time."""
        n_workers = max(1, len(self._client.scheduler_info(n_workers=-1)["workers"]))
        while self._queue and (self._is_announced or len(self._futures) < n_workers):
            job, memory = self._queue.pop(0)
            resources = {RESOURCE: max(1, memory)} if self._is_announced else None
            key = f"lfm-convert {job.step} {uuid.uuid4().hex[:8]}"
            future = self._client.submit(
                work, job.to_json(), alone=not self._is_announced, key=key, resources=resources, pure=False
            )
            future.add_done_callback(lambda _: self._arrived.set())
            self._futures[job.step] = future

    def wait(self) -> Mapping[str, Mapping[str, Any]]:
        while True:
            ended = {step: future for step, future in self._futures.items() if future.done()}
            if ended:
                for step in ended:
                    del self._futures[step]
                self._send_off()
                return {step: _outcome(future) for step, future in ended.items()}
            self._arrived.wait(_LOOK_S)
            self._arrived.clear()

    def stop(self) -> None:
        futures, self._futures, self._queue = list(self._futures.values()), {}, []
        try:
            if futures:
                self._client.cancel(futures, force=True)
                self._client.run(_wait_until_idle, on_error="ignore")
        except Exception as error:  # the cluster may be gone, and with it what it did
            self._progress.note(f"{self._address}: {type(error).__name__}: {error}")
        finally:
            self._client.close(timeout=_STOP_S)


async def _knock(address: str, patience_s: float) -> None:
    """Connects once: a client of Dask's that finds nobody stays half made, and may hang a later one.

    Raises: OSError, or ValueError for what is no address.
    """
    from distributed.comm import connect
    from distributed.security import Security

    if not address.startswith("inproc://"):
        found = await connect(address, timeout=patience_s, **Security().get_connection_args("client"))
        await found.close()


def _announced(worker: Mapping[str, Any]) -> int | None:
    found = worker["resources"].get(RESOURCE)
    return None if found is None else int(found)


def _outcome(future: Any) -> Mapping[str, Any]:
    """What a job came to, whatever became of the worker."""
    from distributed import CancelledError
    from distributed.scheduler import KilledWorker, NoValidWorkerError

    try:
        found: Mapping[str, Any] = future.result()
    except KilledWorker as error:
        times = f"{error.allowed_failures + 1} workers were lost while they had it"
        return failure(ExitCode.NETWORK, f"{times}, at last {error.last_worker.address}: is there memory enough?")
    except (CancelledError, NoValidWorkerError, OSError) as error:
        return failure(ExitCode.NETWORK, f"the cluster has lost it: {' '.join(str(error).split())}")
    except LfmConvertError as error:
        return failure(error.exit_code, str(error))
    except Exception as error:
        return failure(ExitCode.INTERNAL, f"internal error: {type(error).__name__}: {error}")
    return found


# What has begun on this worker and has not ended.
_under_way: set[str] = set()


def work(job: Mapping[str, Any], *, alone: bool) -> dict[str, Any]:
    """Carries a job out on a worker, in a process of its own; with `alone` after those that are under way."""
    from distributed import get_worker

    worker = get_worker()
    key = str(worker.get_current_task())

    def is_wanted() -> bool:
        task = worker.state.tasks.get(key)
        return task is not None and task.state == "executing"

    return _alone_if(alone, key, lambda: in_child(job, scratch=Path(worker.local_directory), is_wanted=is_wanted))


def _alone_if(alone: bool, key: str, do: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    _under_way.add(key)
    try:
        if not alone:
            return do()
        with _alone:
            return do()
    finally:
        _under_way.discard(key)


def under_way() -> list[str]:
    """For a worker: the jobs that it carries out."""
    return sorted(_under_way)


async def _wait_until_idle() -> None:
    """Waits, in a worker's loop, until jobs that were cancelled have ended."""
    until = time.monotonic() + _STOP_S
    while under_way() and time.monotonic() < until:
        await asyncio.sleep(0.1)
