"""Writes tests/golden/*.json anew, after a change of bytes that is meant: `python tests/golden/write.py [TARGET …]`.

With `--new` only cases of which nothing is kept yet are measured, and only with the libraries of the others. Read the
difference before it is committed: `git diff --stat tests/golden` and which "numbers" changed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.cases import TARGETS, cases
from golden.measure import libraries, measure


def golden_file(target: str) -> Path:
    return Path(__file__).parent / f"{target}.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=TARGETS)
    parser.add_argument("--new", action="store_true", help="only what is not kept yet")
    arguments = parser.parse_args()
    for target in arguments.targets:
        kept = json.loads(golden_file(target).read_text(encoding="utf-8"))
        if arguments.new and kept["libraries"] != libraries(target):
            parser.error(f"--new: {target}.json was made with other libraries: {kept['libraries']}")
        found = kept["models"] if arguments.new else {}
        with tempfile.TemporaryDirectory() as scratch:
            for case in cases():
                if case.target == target and case.name not in found:
                    print(f"{target}: {case.name}", flush=True)
                    found[case.name] = measure(case, Path(scratch))
        text = json.dumps({"libraries": libraries(target), "models": found}, indent=1, sort_keys=True)
        golden_file(target).write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
