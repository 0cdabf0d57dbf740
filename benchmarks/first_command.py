"""The README's first command, whole, on a generated model of LFM2-350M's shape: what each of its processes takes.

    python benchmarks/first_command.py [--target onnx --quant q4f16] [--suite standard] [--checkpoint FOLDER]

Converts, runs and compares, as a user does. Printed are CPU seconds of all processes, wall seconds, and of the largest
process the peak of resident and of anonymous memory: what is resident and not anonymous are mapped files. Random weights
lose more by rounding than trained ones, so that the verdict may be a failure. The tokenizer is the bundled one of 1,024
words, which makes more tokens of most prompts than one of 65,536 would.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
from pathlib import Path

from processes import measure_tree

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lfm_convert.convert import bundled
from support.checkpoints import make_checkpoint, preset


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="onnx")
    parser.add_argument("--quant", default="q4f16")
    parser.add_argument("--shape", default="dense-350m")
    parser.add_argument("--suite", default="smoke", help="smoke is what the README's command runs")
    parser.add_argument("--checkpoint", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = options.checkpoint or generate(Path(scratch, "model"), options.shape)
        arguments = [checkpoint, "--target", options.target, "--quant", options.quant, "--suite", options.suite]
        arguments += ["--out", Path(scratch, "out")]
        command = [sys.executable, "-P", "-m", "lfm_convert", *map(str, arguments)]
        measure_tree(command).show()


def generate(folder: Path, shape: str) -> Path:
    """A checkpoint of random weights, with the bundled model's tokenizer."""
    make_checkpoint(folder, preset(shape), tokenizer=False)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(bundled.path("dense") / name, folder)
    return folder


if __name__ == "__main__":
    main()
