"""One job in a process of its own, on a machine of a cluster: `python -m lfm_convert.convert.release.child FOLDER`.

It can be ended at any moment, as no thread of a worker can, and a runtime that crashes takes it down and nothing else.

    FOLDER/job.json        what is to do
    FOLDER/outcome.json    what came of it
    FOLDER/work/           files on their way
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ...graph.errors import ExitCode
from ...graph.files import replace_text
from .jobs import carry_out, failure

_JOB, _OUTCOME, _WORK = "job.json", "outcome.json", "work"
_LOOK_S = 0.2  # between two looks at whether the job is still wanted
_SHOWN = 300  # characters of what a process said last


def main(folder: Path) -> None:
    """Carries out the job of a folder and writes its outcome."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    work = folder / _WORK
    work.mkdir()
    outcome = carry_out(json.loads((folder / _JOB).read_bytes()), work)
    replace_text(folder / _OUTCOME, json.dumps(outcome))


def _end_with_parent() -> None:
    """The parent holds the other end of standard input; if it dies, so does this process."""
    sys.stdin.read()
    os._exit(1)


def in_child(job: Mapping[str, Any], *, scratch: Path, is_wanted: Callable[[], bool]) -> dict[str, Any]:
    """The outcome of a job that a process of its own carries out, which is ended if the job is not wanted any more."""
    with TemporaryDirectory(prefix="lfm-job-", dir=scratch) as name:
        folder = Path(name)
        (folder / _JOB).write_text(json.dumps(job))
        with (folder / "said").open("w+b") as said:
            command = [sys.executable, "-m", __name__, str(folder)]
            process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=said, stderr=said)
            try:
                while process.poll() is None:
                    if not is_wanted():
                        return failure(ExitCode.INTERRUPTED, f"{job['step']}: was cancelled")
                    time.sleep(_LOOK_S)
            finally:
                process.kill()
                process.wait()
            said.seek(0)
            last = said.read().decode(errors="replace").strip()[-_SHOWN:]
        try:
            found: dict[str, Any] = json.loads((folder / _OUTCOME).read_bytes())
        except OSError:
            ended = f"with {process.returncode}" if process.returncode >= 0 else f"by signal {-process.returncode}"
            return failure(ExitCode.INTERNAL, f"its process ended {ended} and left no result: {last}")
        return found


if __name__ == "__main__":
    main(Path(sys.argv[1]))
