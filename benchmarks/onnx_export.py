"""Memory and CPU time of a 4-bit export: ours and onnxruntime-genai's builder, one checkpoint, one run.

    python benchmarks/onnx_export.py [--checkpoint FOLDER]      # needs `make clients`

The checkpoint (3.4 GB) has LFM2-8B-A1B's width and six layers; it is generated into a temporary folder unless one is
given. CPU seconds are user and system; RSS is the whole process's. Hashes and manifest are part of ours.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from convert_memory import ROOT, measure

sys.path.insert(0, str(ROOT / "tests"))

from support.checkpoints import make_checkpoint, moe_config

BUILDER = ROOT / ".clients" / "genai-0.18.0" / "bin" / "python"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = arguments.checkpoint or generate(Path(scratch) / "checkpoint")
        ours = measure(export_command(checkpoint, Path(scratch) / "ours"))
        builder = measure(builder_command(checkpoint, Path(scratch) / "builder"), stderr=subprocess.DEVNULL)
    print(f"{'':10} {'peak RSS MB':>12} {'CPU s':>8} {'wall s':>8}")
    for name, found in (("ours", ours), ("builder", builder)):
        print(f"{name:10} {found['rss_mb']:12.0f} {found['cpu_s']:8.1f} {found['wall_s']:8.1f}")
    ratios = (ours[key] / builder[key] for key in ("rss_mb", "cpu_s", "wall_s"))
    print("{:10} {:12.2f} {:8.2f} {:8.2f}".format("ratio", *ratios))


def generate(folder: Path) -> Path:
    """LFM2-8B-A1B's width, six layers of its twenty-four: two dense, four of 32 experts."""
    config = moe_config(
        hidden_size=2048, num_hidden_layers=6, attention=(2, 5), num_attention_heads=32, num_key_value_heads=8,
        intermediate_size=7168, moe_intermediate_size=1792, num_dense_layers=2, num_experts=32, vocab_size=65536,
        max_position_embeddings=4096,
    )  # fmt: skip
    return make_checkpoint(folder, config, shards=4)


def export_command(checkpoint: Path, out: Path, quant: str = "q4") -> list:
    return [sys.executable, "-m", "lfm_convert", checkpoint, "--target", "onnx", "--quant", quant, "--out", out, "--no-validate"]  # fmt: skip


def builder_command(checkpoint: Path, out: Path) -> list:
    cache = out.with_name("builder-cache")
    return [BUILDER, "-m", "onnxruntime_genai.models.builder", "-i", checkpoint, "-o", out, "-p", "int4", "-e", "cpu", "-c", cache]  # fmt: skip


if __name__ == "__main__":
    main()
