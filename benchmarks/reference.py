"""The reference's prefill against transformers in float32: tokens a second and peak memory.

    python benchmarks/reference.py [--kind moe-1.2b | --checkpoint FOLDER] [--tokens 512] [--repeats 20] [--threads 2]

Without options the bundled mixture is run. Each side is a process of its own that loads the checkpoint and prefills
once to warm up; then the two take turns, so that what else the machine does meets both, and the fastest turn of each
counts. The ratio by CPU time is that of the work itself: with --threads 1 it does not depend on the machine's load.
RSS is the peak of the whole process, imports and loading included.
"""

from __future__ import annotations

import argparse
import json
import os
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
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        serve(options.side, options.checkpoint, options.tokens)
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.checkpoint
        if options.kind:
            folder = Path(scratch) / options.kind
            script = ROOT / "tests" / "support" / "checkpoints.py"
            subprocess.run([sys.executable, script, "--kind", options.kind, folder], check=True, stdout=sys.stderr)
        found = take_turns(folder, options.tokens, options.repeats, options.threads)
    print(f"{options.tokens} tokens, {options.threads} threads, best of {options.repeats}")
    print(f"{'':14} {'tokens/s':>10} {'per CPU s':>10} {'peak MB':>9}")
    for side, (wall, cpu, rss) in found.items():
        print(f"{side:14} {options.tokens / wall:10.1f} {options.tokens / cpu:10.1f} {rss:9.0f}")
    ours, theirs = (found[side] for side in SIDES)
    print(f"{'ratio':14} {theirs[0] / ours[0]:10.2f} {theirs[1] / ours[1]:10.2f} {ours[2] / theirs[2]:9.2f}")


def take_turns(folder: Path, n_tokens: int, repeats: int, threads: int) -> dict[str, list[float]]:
    """By side: seconds and CPU seconds of its fastest turn, and its peak memory in MB."""
    limit = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    own = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}  # kernels of this CPU
    command = [sys.executable, __file__, "--checkpoint", str(folder), "--tokens", str(n_tokens), "--side"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "env": {**own, **limit}}
    sides = {side: subprocess.Popen([*command, side], **pipes) for side in SIDES}
    turns: dict[str, list[list[float]]] = {side: [] for side in SIDES}
    for turn in range(repeats + 1):
        for side, process in sides.items():
            process.stdin.write("run\n")
            process.stdin.flush()
            measured = json.loads(process.stdout.readline())
            if turn:  # the first is to warm up
                turns[side].append(measured)
    for process in sides.values():
        process.stdin.close()
        process.wait()
    return {
        side: [min(wall), min(cpu), max(rss)]
        for side, found in turns.items()
        for wall, cpu, rss in [zip(*found, strict=True)]
    }


def serve(side: str, folder: Path, n_tokens: int) -> None:
    """Prefills once for every line of standard input, and prints [seconds, CPU seconds, peak RSS in MB]."""
    prefill = {"graph": graph_prefill, "transformers": transformers_prefill}[side](folder)
    vocab_size = json.loads((folder / "config.json").read_text())["vocab_size"]
    ids = [1, *((7 * i) % (vocab_size - 20) + 20 for i in range(n_tokens - 1))]
    for _ in sys.stdin:
        began, worked = time.perf_counter(), time.process_time()
        prefill(ids)
        seconds = time.perf_counter() - began, time.process_time() - worked
        peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([*seconds, peak_kib / 1024]), flush=True)


def graph_prefill(folder: Path) -> Callable[[list[int]], object]:
    from lfm_convert.graph.opening import open_graph
    from lfm_convert.graph.reference.forward import Forward

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
