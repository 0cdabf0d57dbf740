"""The reference's prefill against transformers in float32: tokens a second and peak memory.

    python benchmarks/reference.py [--kind moe-1.2b | --checkpoint FOLDER] [--tokens 512] [--repeats 3]

Without options the bundled mixture is run. Each side is a process of its own that loads the checkpoint, prefills once
to warm up, then counts the fastest of the repeats; RSS is the peak of the whole process, imports and loading included.
Both get the threads that the environment gives them (OMP_NUM_THREADS, OPENBLAS_NUM_THREADS).
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SIDES = ("graph", "transformers")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, default=ROOT / "convert" / "bundled" / "moe")
    parser.add_argument("--kind", help="generate a random checkpoint of this kind, see tests/support/configs.py")
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        print(json.dumps(measure(options.side, options.checkpoint, options.tokens, options.repeats)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint
        if options.kind:
            folder = Path(scratch) / options.kind
            script = ROOT / "tests" / "support" / "checkpoints.py"
            subprocess.run([sys.executable, script, "--kind", options.kind, folder], check=True, stdout=sys.stderr)
        arguments = ["--checkpoint", folder, "--tokens", options.tokens, "--repeats", options.repeats]
        found = {side: run_side(side, arguments) for side in SIDES}
    for side, row in found.items():
        print(f"{side:14} {row['tokens_per_s']:9.1f} tokens/s {row['rss_mb']:9.0f} MB")
    ours, theirs = (found[side] for side in SIDES)
    print(
        f"ratio          {ours['tokens_per_s'] / theirs['tokens_per_s']:9.2f} x        "
        f"{ours['rss_mb'] / theirs['rss_mb']:9.2f} x"
    )


def run_side(side: str, arguments: list) -> dict:
    command = [sys.executable, __file__, "--side", side, *map(str, arguments)]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def measure(side: str, folder: Path, n_tokens: int, repeats: int) -> dict:
    prefill = {"graph": graph_prefill, "transformers": transformers_prefill}[side](folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = [1, *((7 * i) % (vocab_size - 20) + 20 for i in range(n_tokens - 1))]
    prefill(ids)
    fastest = float("inf")
    for _ in range(repeats):
        began = time.perf_counter()
        prefill(ids)
        fastest = min(fastest, time.perf_counter() - began)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"tokens_per_s": n_tokens / fastest, "rss_mb": peak_kib / 1024}


def graph_prefill(folder: Path) -> Callable[[list[int]], object]:
    from lfm_convert.convert.model.forward import Forward
    from lfm_convert.convert.model.lfm2 import open_graph

    forward = Forward(open_graph(folder))
    return lambda ids: forward.prefill([ids])


def transformers_prefill(folder: Path) -> Callable[[list[int]], object]:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    def prefill(ids: list[int]) -> object:
        with torch.no_grad():
            return model(torch.tensor([ids])).logits

    return prefill


if __name__ == "__main__":
    main()
