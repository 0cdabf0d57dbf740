"""The gate at full size: what judging one artifact of LFM2-8B-A1B's shape takes, and the same with a kept reference.

    python benchmarks/full_gate.py [--suites smoke standard] [--target gguf --quant Q4_K_M] [--checkpoint FOLDER]

The checkpoint is generated and converted first, 22 GB of disk. Printed are CPU seconds of all processes, wall seconds, and
of each process the peak of resident and anonymous memory by the OS. Random weights route to all experts alike, so that
every one is read. The tokenizer is the bundled one of 1,024 words.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

from first_command import generate
from processes import measure, measure_tree

TOOL = [sys.executable, "-P", "-m", "lfm_convert"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--suites", nargs="*", default=["smoke", "standard"])
    parser.add_argument("--target", default="gguf")
    parser.add_argument("--quant", default="Q4_K_M")
    parser.add_argument("--shape", default="moe-8b")
    parser.add_argument("--checkpoint", type=Path, help="generated before, with the bundled tokenizer")
    parser.add_argument("--scratch", type=Path, help="where the temporary folder goes")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.scratch) as name:
        scratch = Path(name)
        checkpoint = options.checkpoint or generate(scratch / "model", options.shape)
        asked = ["--target", options.target, "--quant", options.quant, "--out", scratch / "out", "--no-validate"]
        written = measure([*TOOL, checkpoint, *asked])
        print(f"written: {written.cpu_s:.0f} CPU s, {written.rss_gb:.2f} GB", flush=True)
        command = [*TOOL, "validate", scratch / "out", "-r", checkpoint, "--reference-cache", scratch / "kept"]
        for suite in options.suites:
            for how in ("", ", the reference kept"):
                print(f"\n{suite}{how}:", flush=True)
                measure_tree([*command, "--suite", suite]).show()


if __name__ == "__main__":
    main()
