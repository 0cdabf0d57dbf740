"""Kills a release at random moments, runs it again, and compares what lies there with an undisturbed run's.

    python tests/faults/release_kills.py [RECIPE] [--kills 20] [--anew 0] [--quick] [--only PATTERN …]
                                           [--whole DIR] [--seed 0]

One release is killed again and again, each time at a random moment of what it then does; one that comes to its end is
compared, and the next begins with nothing, until all kills are spent. With `--anew` so many more begin with nothing and are
killed once. After every kill each artifact that is
there must be one of the undisturbed run, byte for byte, and its manifest must say so; after the last run everything must
be. Then the second run of the undisturbed release is timed. With `--quick` artifacts are compared by a stand-in, so that
kills meet conversions and publishing, where hours of comparing would hide them. `--whole` is the folder of an undisturbed run that is there
already. Ends with 1 if anything differs.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
QUALITY = 3
STAND_IN = ROOT / "tests" / "support" / "releases.py"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", type=Path, default=ROOT / "examples" / "tiny.toml")
    parser.add_argument("--kills", type=int, default=20, help="of releases that go on")
    parser.add_argument("--anew", type=int, default=0, help="of releases that begin with nothing, one each")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--whole", type=Path)
    parser.add_argument("--only", nargs="*", default=[], help="patterns of artifacts")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        command = [sys.executable, *([str(STAND_IN)] if arguments.quick else ["-m", "lfm_convert"]), "release"]
        command += [str(arguments.recipe), *(word for pattern in arguments.only for word in ("--only", pattern))]
        trial = Trial(command, Path(name), arguments.whole, random.Random(arguments.seed))
        trial.kill_on_and_on(arguments.kills)
        for _ in range(arguments.anew):
            trial.kill_one()
        trial.time_again()
    print(f"{trial.n_kills} kills, {len(trial.wanted)} files, {trial.n_lost} lost or other than they must be")
    sys.exit(1 if trial.n_lost else 0)


class Trial:
    """One recipe's release into folders of a scratch folder; `wanted` is what an undisturbed run writes."""

    def __init__(self, command: Sequence[str], scratch: Path, whole: Path | None, draw: random.Random) -> None:
        self._command, self._scratch, self._random = command, scratch, draw
        self.n_kills = self.n_lost = 0
        self._whole = whole or scratch / "whole"
        seconds = self._run(self._whole)
        state = json.loads((self._whole / ".lfm-release" / "state.json").read_text())
        steps = state["content"]["seconds"].values()
        self._seconds, self._longest_step = max(seconds, sum(steps)), max(steps)
        self.wanted = tree(self._whole)
        print(f"undisturbed: steps of {self._seconds:.1f} s, {len(self.wanted)} files", flush=True)

    def kill_one(self) -> None:
        out = self._scratch / "one"
        self._kill(out, self._seconds)
        self._finish(out)

    def kill_on_and_on(self, n: int) -> None:
        out = self._scratch / "on"
        longest = max(2 * self._seconds / n, 2 * self._longest_step) if n else 0.0  # else it would never get on
        while self.n_kills < n:
            if not self._kill(out, longest):
                self._finish(out)  # it was at its end before
        self._finish(out)

    def time_again(self) -> None:
        """The second run of the undisturbed release."""
        print(f"second run: {self._run(self._whole):.2f} s", flush=True)
        if tree(self._whole) != self.wanted:
            self._lost("the second run changed something")

    def _kill(self, out: Path, longest: float) -> bool:
        """Kills a run at a moment between none and `longest` seconds; whether it was still running then."""
        process = subprocess.Popen(
            [*self._command, "--out", str(out)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        wait = self._random.uniform(0, longest)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            self.n_kills += 1
            print(f"killed after {wait:.1f} s: {self._check(out)} artifacts there, each whole", flush=True)
            return True
        return False

    def _finish(self, out: Path) -> None:
        seconds = self._run(out)
        found = tree(out)
        for name in sorted(set(found) ^ set(self.wanted)):
            self._lost(f"{name}: {'is missing' if name in self.wanted else 'is too much'}")
        for name in sorted(set(found) & set(self.wanted)):
            if found[name] != self.wanted[name]:
                self._lost(f"{name}: is other than in the undisturbed run")
        print(f"went on in {seconds:.1f} s", flush=True)
        shutil.rmtree(out)

    def _check(self, out: Path) -> int:
        """Holds each artifact that a manifest lists to its hashes and to the undisturbed run; how many there are."""
        n_there = 0
        for manifest in out.glob("*/lfm-convert.json"):
            for entry in json.loads(manifest.read_text())["artifacts"]:
                n_there += 1
                for file in entry["files"]:
                    path = manifest.parent / file["path"]
                    name = path.relative_to(out).as_posix()
                    if not path.is_file() or sha256(path) != file["sha256"] or file["sha256"] != self.wanted[name]:
                        self._lost(f"{name}: is not what its manifest lists")
        return n_there

    def _run(self, out: Path) -> float:
        """Seconds of a run to its end."""
        start = time.monotonic()
        done = subprocess.run([*self._command, "--out", str(out)], capture_output=True, text=True, check=False)
        if done.returncode not in (0, QUALITY):  # which a stand-in's numbers may be on the wrong side of
            raise SystemExit(f"the release itself ends with {done.returncode}: {done.stderr}")
        return time.monotonic() - start

    def _lost(self, sentence: str) -> None:
        self.n_lost += 1
        print(f"LOST: {sentence}", flush=True)


def tree(folder: Path) -> dict[str, str]:
    """sha256 of what lies in the folders of a release, by path: not of reports, which are dated."""
    found = (path for path in sorted(folder.glob("*/**/*")) if path.is_file())
    names = ((path.relative_to(folder), path) for path in found)
    return {
        name.as_posix(): sha256(path) for name, path in names if not any(part.startswith(".") for part in name.parts)
    }


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
