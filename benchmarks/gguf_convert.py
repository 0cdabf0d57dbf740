"""One pass of ours against llama.cpp's two steps: CPU-seconds, peak memory and bytes on disk, whole processes.

    python benchmarks/gguf_convert.py [--checkpoint FOLDER] [QUANT …]

The converter is the one in llama-cpp-python's sources, which pip fetches, and cyllama's `model_quantize` is the
quantizer. The converter runs with one OpenMP thread, which costs it least, and is told the pre-tokenizer, since it
knows no generated vocabulary. The checkpoint, 1.2 B parameters in 2.4 GB, is
generated into a temporary folder unless one is given.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from convert_memory import generate, measure
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.policies.gguf import FILE_TYPES

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from support.llama_cpp import KNOWN_AS_LFM2, convert_command

QUANTIZE = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
params = LlamaModelQuantizeParams()
params.ftype, params.nthread = int(sys.argv[3]), 2
model_quantize(sys.argv[1], sys.argv[2], params)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    parser.add_argument("quants", nargs="*", default=("Q4_0", "Q4_K_M"))
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = arguments.checkpoint or generate(folder / "moe-1.2b")
        between = folder / "between.gguf"
        first = measure(convert_command(checkpoint, between, "bf16", patch=KNOWN_AS_LFM2))
        extra_mb = between.stat().st_size / 1e6
        print(f"convert to bf16: {first['cpu_s']:.1f} CPU s, {first['rss_mb']:.0f} MB, file of {extra_mb:.0f} MB")
        print(f"{'quant':8} {'theirs CPU s':>13} {'ours CPU s':>11} {'ratio':>6} {'RSS MB':>15} {'same tensors':>13}")
        for quant in arguments.quants:
            theirs, out = folder / "theirs.gguf", folder / "ours"
            second = measure([sys.executable, "-c", QUANTIZE, between, theirs, FILE_TYPES[quant]])
            command = [sys.executable, "-m", "lfm_convert", checkpoint, "--target", "gguf", "--quant", quant]
            mine = measure([*command, "--out", out, "--overwrite", "--no-validate", "--jobs", 2])
            total = first["cpu_s"] + second["cpu_s"]
            print(
                f"{quant:8} {total:13.1f} {mine['cpu_s']:11.1f} {mine['cpu_s'] / total:6.2f} "
                + f"{max(first['rss_mb'], second['rss_mb']):7.0f} / {mine['rss_mb']:5.0f} "
                + f"{'yes' if same_tensors(theirs, next(out.glob('*.gguf'))) else 'NO':>13}",
                flush=True,
            )
            subprocess.run(["rm", "-r", theirs, out], check=True)


def same_tensors(first: Path, second: Path) -> bool:
    a, b = read_gguf(first), read_gguf(second)
    if a.tensors != b.tensors:
        return False
    with first.open("rb") as left, second.open("rb") as right:
        left.seek(a.data_offset)
        right.seek(b.data_offset)
        while chunk := left.read(1 << 24):
            if chunk != right.read(1 << 24):
                return False
        return not right.read(1)


if __name__ == "__main__":
    main()
