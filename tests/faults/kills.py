"""Ends conversions in every way at random moments, and looks at what is left: the old artifact or the whole new one.

    python tests/faults/kills.py [--kills 200] [--targets gguf onnx mlx coreml compressed-tensors executorch] [--big 20] [--seed 0] [--jobs 2]

Each attempt is a process of its own, forked from one that has imported what it needs. Half of the kills come at a
random time, half at a random call that the process makes to the file system (an audit hook counts them), so that the
moments between two renames are met as often as the hours of encoding. Each call that makes, opens for writing or renames
something finds the disk full once over nothing and once over an old artifact; from the first rename on the new artifact
is there all the same. After each fault the destination is read as a reader would; then the next run must sweep what is
left. Ends with 1 if anything was lost.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lfm_convert.convert import bundled
from lfm_convert.convert.cli import main as command_line
from lfm_convert.convert.destination import settle
from support.checkpoints import make_checkpoint, preset
from support.safetensors_files import Tensor, edit_tensors

QUANTS = {
    "gguf": "Q4_0", "onnx": "q4f16", "mlx": "4bit", "coreml": "int4", "compressed-tensors": "NVFP4A16", "executorch": "8da4w",
}  # fmt: skip
_EVENTS = {"open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.truncate", "os.link", "shutil.rmtree"}
_WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT
_WORDS = {signal.SIGINT: 130, signal.SIGTERM: 143}

Tree = dict[str, str]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200, help="a target, on the bundled dense model")
    parser.add_argument("--big", type=int, default=20, help="a target, on a generated dense model of 1.2 B parameters")
    parser.add_argument("--others", type=int, default=20, help="of each other fault, a target")
    parser.add_argument("--targets", nargs="*", choices=QUANTS, default=list(QUANTS))
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=1, help="so many targets at a time, each in a process of its own")
    arguments = parser.parse_args()
    if arguments.jobs > 1 and len(arguments.targets) > 1:
        sys.exit(_side_by_side(arguments))
    lost = 0
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        scratch = Path(name)
        models = _variants(scratch / "small")
        for target in arguments.targets:
            trial = Trial(target, *models, scratch / target, random.Random(arguments.seed))
            lost += trial.report("bundled", _faults(trial, arguments.kills, arguments.others))
        if arguments.big:
            models = _big(scratch / "big")
            for target in arguments.targets:
                trial = Trial(target, *models, scratch / f"{target}-big", random.Random(arguments.seed))
                lost += trial.report("1.2 B", [("SIGKILL at a random time", trial.kill_at_time, arguments.big)])
    print(f"{lost} lost")
    sys.exit(1 if lost else 0)


def _side_by_side(arguments: argparse.Namespace) -> int:
    """The same command once a target, those that take longest first. Returns 1 if one of them lost something."""
    more = [f"--{name}={getattr(arguments, name)}" for name in ("kills", "big", "others", "seed")]
    more += [f"--scratch={arguments.scratch}"] if arguments.scratch else []
    with ThreadPoolExecutor(arguments.jobs) as pool:
        commands = [[sys.executable, __file__, "--targets", each, *more] for each in reversed(arguments.targets)]
        return max(pool.map(lambda command: subprocess.run(command, check=False).returncode, commands))


def _variants(folder: Path) -> tuple[Path, Path]:
    """The bundled dense model, and one of the same names and shapes with other weights."""
    new, old = folder / "new" / "model", folder / "old" / "model"
    for place in (new, old):
        shutil.copytree(bundled.path("dense"), place)

    def double(tensors: dict[str, Tensor]) -> None:
        for key, tensor in tensors.items():
            if key.endswith("norm.weight"):
                words = np.frombuffer(tensor.data, "<u2")
                tensors[key] = Tensor(tensor.dtype, tensor.shape, (words ^ 1).astype("<u2").tobytes())

    for shard in old.glob("*.safetensors"):
        edit_tensors(shard, double)
    return new, old


def _big(folder: Path) -> tuple[Path, Path]:
    new = make_checkpoint(folder / "new" / "model", preset("dense-1.2b"), shards=4)
    old = make_checkpoint(folder / "old" / "model", preset("dense-1.2b"), shards=4, seed=1)
    return new, old


def _faults(trial: Trial, n_kills: int, n_others: int) -> list[tuple[str, Callable[[], str], int]]:
    half = n_kills // 2
    return [
        ("SIGKILL at a random time", trial.kill_at_time, n_kills - half),
        ("SIGKILL at a random call", trial.kill_at_call, half),
        ("SIGINT", lambda: trial.signalled(signal.SIGINT), n_others),
        ("SIGTERM", lambda: trial.signalled(signal.SIGTERM), n_others),
        ("SIGKILL, then --resume", trial.resumed, n_others),
        ("full disk at each call", trial.full_disk, 2 * trial.n_writes if n_others else 0),
        ("two processes", trial.two_processes, max(1, n_others // 4)),
        ("source changed meanwhile", trial.source_changed, max(1, n_others // 4)),
    ]


@dataclass
class Trial:
    """One target's conversion of `new`, into a folder that holds nothing or what was made of `old`."""

    target: str
    new: Path
    old: Path
    scratch: Path
    random: random.Random
    trees: dict[str, Tree] = field(default_factory=dict)
    seconds: float = 0.0
    n_calls: int = 0
    n_writes: int = 0
    n_full: int = 0

    def __post_init__(self) -> None:
        self.scratch.mkdir()
        importlib_all(self.target)
        for name, model in (("old", self.old), ("new", self.new)):
            out = self.scratch / name
            began = time.monotonic()
            count = self.scratch / "calls"
            child = self._start(model, out, count_to=count)
            if _ended(child) != 0:
                raise SystemExit(f"{self.target}: the conversion itself fails")
            self.seconds = time.monotonic() - began
            self.n_calls, self.n_writes = map(int, count.read_text().split())
            self.trees[name] = _tree(out)
        assert self.trees["old"] != self.trees["new"]
        self.trees["nothing"] = {}

    def report(self, model: str, faults: list[tuple[str, Callable[[], str], int]]) -> int:
        """Carries faults out; a row each. Returns how many lost something."""
        n_lost = 0
        for name, fault, n in faults:
            ends: Counter[str] = Counter()
            for _ in range(n):
                end = fault()
                ends[end] += 1
                if end.startswith("LOST"):
                    n_lost += 1
            listed = ", ".join(f"{count} {end}" for end, count in sorted(ends.items()))
            print(f"{self.target:10} {model:8} {name:28} {n:4} tried: {listed}", flush=True)
        return n_lost

    def kill_at_time(self) -> str:
        out, before = self._destination()
        child = self._start(self.new, out)
        time.sleep(self.random.uniform(0, 1.1 * self.seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return self._after_kill(out, before)

    def kill_at_call(self) -> str:
        out, before = self._destination()
        child = self._start(self.new, out, kill_at=self.random.randrange(self.n_calls + 1))
        os.waitpid(child, 0)
        return self._after_kill(out, before)

    def resumed(self) -> str:
        """What is resumed is what would have been written at once."""
        out, before = self._destination()
        child = self._start(self.new, out, "--resume")
        time.sleep(self.random.uniform(0, 1.1 * self.seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        state = self._state(out, before)
        if state.startswith("LOST"):
            return state
        # what is there is the new artifact already if the kill came late; then there is nothing to replace
        options = ["--resume"] if state == "new" else ["--resume", "--overwrite"]
        code = _ended(self._start(self.new, out, *options, plain=True))
        return "resumed to the same bytes" if code == 0 and _all(out) == self.trees["new"] else f"LOST: code {code}"

    def signalled(self, number: signal.Signals) -> str:
        out, before = self._destination()
        child = self._start(self.new, out)
        time.sleep(self.random.uniform(0, 1.1 * self.seconds))
        os.kill(child, number)
        code = _ended(child)
        if code not in (0, _WORDS[number]):
            return f"LOST: exit code {code}"
        state = self._state(out, before)
        hidden = list(out.rglob(".lfm*")) if out.exists() else []
        return f"LOST: left {hidden[0]}" if hidden else state

    def full_disk(self) -> str:
        """A file, folder or rename finds no room: one call after the other, over nothing and over an old artifact."""
        call, out_of_two = divmod(self.n_full, 2)
        self.n_full += 1
        out, before = self._destination(("old", "nothing")[out_of_two])
        code = _ended(self._start(self.new, out, fail_at=call))
        if code not in (0, 7):
            return f"LOST: exit code {code}"
        state = self._state(out, before)
        return state if state == "new" or code == 7 else f"LOST: exit code {code}, and {state}"

    def two_processes(self) -> str:
        out, before = self._destination()
        first = self._start(self.new, out)
        time.sleep(self.random.uniform(0, self.seconds))
        codes = sorted((_ended(self._start(self.new, out)), _ended(first)))
        state = self._state(out, before)
        is_right = codes in ([0, 7], [0, 0]) and state == "new"
        return state if is_right else f"LOST: exit codes {codes}, {state}"

    def source_changed(self) -> str:
        out, before = self._destination()
        copy = shutil.copytree(self.new, self.scratch / "changing" / "model")
        child = self._start(copy, out)
        time.sleep(self.random.uniform(0, self.seconds))
        next(iter(sorted(copy.glob("*.safetensors")))).touch()
        code = _ended(child)
        shutil.rmtree(copy.parent)
        state = self._state(out, before)
        return state if code in (0, 5) and (state == "new") == (code == 0) else f"LOST: exit code {code}, {state}"

    def _destination(self, before: str = "") -> tuple[Path, str]:
        """A folder in the state it is to be converted into, by default one or the other."""
        out = self.scratch / "out"
        shutil.rmtree(out, ignore_errors=True)
        before = before or self.random.choice(("old", "nothing"))
        if before == "old":
            shutil.copytree(self.scratch / "old", out, copy_function=os.link)
        return out, before

    def _after_kill(self, out: Path, before: str) -> str:
        """The state a reader finds; now and then the next run must leave nothing behind."""
        state = self._state(out, before)
        if not state.startswith("LOST") and self.random.random() < 0.05:
            code = _ended(self._start(self.new, out))
            if code != 0 or _all(out) != self.trees["new"]:
                return f"LOST: the next run ends with {code} and leaves {sorted(_all(out).keys() ^ self.trees['new'].keys())}"
        return state

    def _state(self, out: Path, before: str) -> str:
        if out.is_dir():
            settle(out)
        found = _tree(out)
        name = next((name for name in ("new", before) if found == self.trees[name]), None)
        return name or f"LOST: holds {sorted(found)}, was {before}"

    def _start(
        self,
        model: Path,
        out: Path,
        *options: str,
        plain: bool = False,
        kill_at: int | None = None,
        fail_at: int | None = None,
        count_to: Path | None = None,
    ) -> int:
        """Forks a conversion; its process id."""
        signal.pthread_sigmask(signal.SIG_BLOCK, _WORDS)  # until the child hears them as the console script does
        child = os.fork()
        if child:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WORDS)
            return child
        for stream in (1, 2):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
        calls = _Calls(out, kill_at, fail_at)
        sys.addaudithook(calls)
        arguments = [str(model), "--target", self.target, "--quant", QUANTS[self.target], "--out", str(out)]
        arguments += ["--no-validate", *options, *([] if plain else ["--overwrite"])]
        code = 1
        try:
            for number in _WORDS:
                signal.signal(number, command_line.on_signal)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _WORDS)
            command_line.run(arguments)
        except SystemExit as end:
            code = int(end.code or 0)
        except command_line.Stopped as stopped:  # before the console script began
            code = stopped.code
        finally:
            if count_to is not None:
                count_to.write_text(f"{calls.n} {calls.n_writes}")
            os._exit(code)


class _Calls:
    """An audit hook that counts what a process does to a destination, and ends it at one call or fails it at one that
    writes: most only read.
    """

    def __init__(self, out: Path, kill_at: int | None, fail_at: int | None) -> None:
        self._prefix = os.path.realpath(out)
        self._kill_at, self._fail_at = kill_at, fail_at
        self.n = self.n_writes = 0

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if event not in _EVENTS:
            return
        if not any(isinstance(a, str | os.PathLike) and os.fspath(a).startswith(self._prefix) for a in arguments):
            return
        self.n += 1
        if self.n - 1 == self._kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        makes = event == "os.mkdir" and not Path(str(arguments[0])).exists()  # what is there is asked for as well
        is_write = makes or event == "os.rename" or (event == "open" and int(str(arguments[2])) & _WRITING)
        self.n_writes += bool(is_write)
        if self.n_writes - 1 == self._fail_at and is_write:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def importlib_all(target: str) -> None:
    """Imports what a conversion needs, so that a fork starts with it."""
    import importlib

    for module in ("convert.pipeline", f"targets.{target}.target", "validate.results"):
        importlib.import_module(f"lfm_convert.{module}")
    if target == "executorch":
        importlib.import_module("lfm_convert.targets.executorch.lowering")
    if target == "onnx":
        importlib.import_module("onnx")


def _ended(child: int) -> int:
    _, status = os.waitpid(child, 0)
    return os.waitstatus_to_exitcode(status)


def _tree(folder: Path) -> Tree:
    """sha256 by path of the files that a user sees."""
    return {
        name: digest
        for name, digest in _all(folder).items()
        if not name.rpartition("/")[2].startswith(".lfm") and ".lfm-" not in name
    }


def _all(folder: Path) -> Tree:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file()
    }


if __name__ == "__main__":
    main()
