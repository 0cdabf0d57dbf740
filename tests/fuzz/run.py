"""Fuzzes the readers of foreign files: `python tests/fuzz/run.py --minutes 10 [READER …]`.

Each reader runs in a process of its own, by atheris (guided by coverage) where it is installed, else by blind
mutation. A finding is an exception that is no LfmConvertError, a crash, more than 2 seconds of the processor, or more
than 512 MiB. Its input is kept in tests/fuzz/corpus/READER, which the test suite reads from then on.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

CORPUS = Path(__file__).parent / "corpus"
MAX_SECONDS, MAX_BYTES = 2.0, 512 << 20  # of the processor's time
_WALL = 10  # so many times that by the clock, which a busy machine stretches
_GRACE_SECONDS = 60.0
_NAMES = (
    "safetensors", "index", "gguf", "gguf-weights", "onnx-weights", "mlx-weights", "gguf-foreign", "onnx-foreign",
    "mlx-foreign", "ct-foreign", "gguf-source", "mlx-source", "awq", "bitsandbytes-4bit", "bitsandbytes-8bit",
    "compressed-fp8", "compressed-int4", "compressed-int8", "compressed-nvfp4", "fp8", "gptq", "mxfp8",
    "compressed-int4-config", "gptq-config", "adapter", "adapter-config", "coreml", "config", "tokenizer",
    "tokenizer-config", "generation-config", "template", "imatrix", "statistics", "manifest", "recipe", "prompts",
)  # fmt: skip


class Hang(BaseException):
    """Raised inside a reader that takes too long; no handler of ours takes it for something else."""


class Session:
    """Executions of one reader and what they found."""

    def __init__(self, reader: Any, folder: Path) -> None:
        from lfm_convert.graph.errors import LfmConvertError

        self.reader, self.folder, self._accepted = reader, folder, LfmConvertError
        self.executions = 0
        self.findings: dict[str, str] = {}
        self.seeds = list(reader.seeds(folder)) + kept(reader.name)

    def limit_memory(self) -> None:
        """From here on the process may grow by what a reader may use, and numpy's threads by nothing."""
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MAX_BYTES, resource.RLIM_INFINITY))

    def execute(self, data: bytes) -> str | None:
        """Reads one input; returns what is wrong, once for each place in the code."""
        self.executions += 1
        timers = (
            (signal.SIGPROF, signal.ITIMER_PROF, MAX_SECONDS),
            (signal.SIGALRM, signal.ITIMER_REAL, _WALL * MAX_SECONDS),
        )
        for number, timer, seconds in timers:
            signal.signal(number, _raise_hang)
            signal.setitimer(timer, seconds)
        try:
            self.reader.read(data, self.folder)
            return None
        except self._accepted:
            return None
        except (Exception, Hang) as error:
            return self._finding(data, error)
        finally:
            for _, timer, _ in timers:
                signal.setitimer(timer, 0)

    def _finding(self, data: bytes, error: BaseException) -> str | None:
        own = [f for f in traceback.extract_tb(error.__traceback__) if "lfm_convert" in f.filename] or [None]
        place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own[-1] else "?"
        key = f"{type(error).__name__} at {place}"
        if key in self.findings:
            return None
        self.findings[key] = f"{key}: {error}"[:300]
        keep(self.reader.name, data)
        return self.findings[key]

    def save(self, path: Path) -> None:
        path.write_text(json.dumps({"executions": self.executions, "findings": list(self.findings.values())}))


def _raise_hang(_signal: int, _frame: object) -> None:
    raise Hang(f"more than {MAX_SECONDS:g} seconds")


def keep(name: str, data: bytes) -> None:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / hashlib.sha256(data).hexdigest()[:16]).write_bytes(data)


def kept(name: str) -> list[bytes]:
    """The inputs that once were findings."""
    return [path.read_bytes() for path in sorted((CORPUS / name).glob("*"))]


def fuzz_blindly(
    session: Session, *, seed: int, seconds: float = math.inf, executions: float = math.inf, after_each: Any = None
) -> None:
    """Mutates seeds, and inputs made of them, until the time is over or so many were read.

    The inputs follow from the seed, so that a number of executions is the same test on every machine.
    """
    generator = random.Random(seed)
    pool = list(session.seeds)
    end = time.monotonic() + seconds
    for data in session.seeds:
        session.execute(data)
    while time.monotonic() < end and session.executions < executions:
        from fuzz.mutate import mutate

        data = mutate(generator.choice(pool), generator, pool)
        if after_each:
            after_each(data)
        session.execute(data)
        if generator.random() < 0.002 and len(pool) < 4 * len(session.seeds) + 64:
            pool.append(data)


def _child(name: str, *, seconds: float, seed: int, state: Path, folder: Path) -> None:
    guided = importlib.util.find_spec("atheris") is not None
    if guided:
        import atheris

        with atheris.instrument_imports(include=["lfm_convert"], enable_loader_override=False):
            from fuzz.readers import READERS
    else:
        from fuzz.readers import READERS
    from fuzz import readers

    readers.FORKS = True
    reader = READERS[name]
    session = Session(reader, folder)
    session.limit_memory()
    last = 0.0

    def note(data: bytes) -> None:
        nonlocal last
        (state / "current").write_bytes(data)  # what a crash leaves behind
        if time.monotonic() - last > 0.5:
            last = time.monotonic()
            session.save(state / "state.json")

    if guided and reader.is_guided:
        _fuzz_guided(session, seconds=seconds, seed=seed, note=note, folder=folder)
    fuzz_blindly(session, seconds=seconds, seed=seed, after_each=note)
    session.save(state / "state.json")


def _fuzz_guided(session: Session, *, seconds: float, seed: int, note: Any, folder: Path) -> None:
    """Hands over to libFuzzer, which ends the process."""
    import atheris
    from fuzz.mutate import mutate

    start = folder / "start"
    start.mkdir()
    for i, data in enumerate(session.seeds):
        (start / str(i)).write_bytes(data)
    largest = 4 * max(map(len, session.seeds)) + 4096

    def execute(data: bytes) -> None:
        note(data)
        session.execute(data)

    def change(data: bytes, max_size: int, seed: int) -> bytes:
        generator = random.Random(seed)
        return (mutate(data, generator, session.seeds) if generator.random() < 0.7 else atheris.Mutate(data, max_size))[
            :max_size
        ]

    options = [
        f"-max_total_time={max(1, int(seconds))}",
        f"-max_len={largest}",
        f"-seed={seed}",
        "-timeout=0",
        "-rss_limit_mb=0",
    ]
    atheris.Setup([sys.argv[0], *options, "-verbosity=0", str(start)], execute, custom_mutator=change)
    atheris.Fuzz()


def _watch(name: str, seconds: float, seed: int) -> dict[str, Any]:
    """Runs children until the time is over, one anew after each crash."""
    end, total, findings = time.monotonic() + seconds, 0, []
    while (left := end - time.monotonic()) > 1:
        with tempfile.TemporaryDirectory() as scratch:
            state, folder = Path(scratch, "state"), Path(scratch, "read")
            state.mkdir(), folder.mkdir()
            command = [
                sys.executable,
                __file__,
                name,
                "--child",
                scratch,
                "--seconds",
                str(left),
                "--seed",
                str(seed + total),
            ]
            with (Path(scratch) / "log").open("wb") as log:
                try:
                    code: int | str = subprocess.run(
                        command, stdout=log, stderr=log, timeout=left + _GRACE_SECONDS, check=False
                    ).returncode
                except subprocess.TimeoutExpired:
                    code = "hang"
            found = json.loads((state / "state.json").read_text()) if (state / "state.json").exists() else {}
            total += found.get("executions", 0)
            findings += found.get("findings", [])
            if code != 0:
                text = (Path(scratch) / "log").read_text(errors="replace")[-400:].replace("\n", " ")
                if not found:
                    findings.append(f"ended with {code} before it read anything: {text}")
                    break
                keep(name, (state / "current").read_bytes())
                findings.append(f"process ended with {code}: {text}")
    return {"reader": name, "executions": total, "findings": sorted(set(findings))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("readers", nargs="*", metavar="READER", help=f"default: all of {', '.join(_NAMES)}")
    parser.add_argument("--minutes", type=float, default=10.0, help="for each reader")
    parser.add_argument("--seconds", type=float, help="in place of minutes")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    seconds = options.seconds or 60 * options.minutes
    if options.child:
        child = options.child
        _child(options.readers[0], seconds=seconds, seed=options.seed, state=child / "state", folder=child / "read")
        return
    names = options.readers or list(_NAMES)
    with ThreadPoolExecutor(options.workers) as pool:
        results = list(pool.map(lambda name: _watch(name, seconds, options.seed), names))
    engine = "atheris" if importlib.util.find_spec("atheris") else "blind mutation"
    print(
        f"{'reader':20} {'minutes':>8} {'executions':>11} {'findings':>9}   engine: {engine}, templates by blind mutation"
    )
    for result in results:
        print(f"{result['reader']:20} {seconds / 60:8.1f} {result['executions']:11,} {len(result['findings']):9}")
        for finding in result["findings"]:
            print(f"    {finding}")
    sys.exit(1 if any(result["findings"] for result in results) else 0)


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
    sys.path.pop(1) if sys.path[1:2] == [str(Path(__file__).parent)] else None
    main()
