"""Milliseconds a token of our q4 graphs and of onnxruntime-genai's builder's int4, under plain ONNX Runtime.

    python benchmarks/onnx_decode.py [--checkpoint FOLDER] [--rounds 3]      # needs `make clients`

Two generated models: LFM2-8B-A1B's width with six layers, and LFM2-350M's shape. Each runtime runs each graph in a
process of its own, ours and the builder's by turns; a process feeds 32 tokens, then decodes 64 one by one with two
threads, and reports the fastest tenth. The row is the best of the rounds: what disturbs a machine only ever adds.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

_N_PROMPT, _N_TOKENS = 32, 64
_HEAD_SIZE = 64  # head size of every LFM2; the builder's graphs leave it open


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="The mixture of experts, if it is there already.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(decode(arguments.child)))
        return
    from onnx_export import ROOT, generate
    from support.checkpoints import make_checkpoint, preset

    runtimes = {"1.31.1": sys.executable, "1.30.0": str(ROOT / ".clients" / "ort-1.30.0" / "bin" / "python")}
    print(f"{'model':10} {'runtime':8} {'ours ms':>8} {'builder ms':>11} {'ratio':>6}  load s")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dense = make_checkpoint(folder / "350m", {**preset("dense-350m"), "max_position_embeddings": 4096})
        compare("350M", dense, folder, {"1.31.1": runtimes["1.31.1"]}, arguments.rounds)
        experts = arguments.checkpoint or generate(folder / "moe")
        compare("8B-A1B/6", experts, folder, runtimes, arguments.rounds)


def compare(name: str, checkpoint: Path, folder: Path, runtimes: dict[str, str], rounds: int) -> None:
    """Exports a checkpoint both ways and prints a row a runtime."""
    from onnx_export import builder_command, export_command

    ours, builder = folder / f"{checkpoint.name}-ours", folder / f"{checkpoint.name}-builder"
    for command in (export_command(checkpoint, ours), builder_command(checkpoint, builder)):
        subprocess.run(command, check=True, capture_output=True)
    graphs = (ours / "onnx" / "model_q4.onnx", builder / "model.onnx")
    for version, python in runtimes.items():
        found: list[list[dict]] = [[], []]
        for _ in range(rounds):
            for graph, results in zip(graphs, found, strict=True):
                done = subprocess.run([python, __file__, "--child", graph], check=True, capture_output=True, text=True)
                results.append(json.loads(done.stdout))
        best = [min(result["ms"] for result in results) for results in found]
        loads = " / ".join(f"{min(result['load_s'] for result in results):.1f}" for results in found)
        print(f"{name:10} {version:8} {best[0]:8.1f} {best[1]:11.1f} {best[0] / best[1]:6.3f}  {loads}", flush=True)


def decode(path: Path) -> dict[str, float]:
    """Runs in the measured process: load time in seconds, and the tenth percentile of a decode step in milliseconds."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 2, 3
    began = time.perf_counter()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    load_s = time.perf_counter() - began
    fixed = {"input_ids", "attention_mask", "num_logits_to_keep"}
    sizes = {"batch_size": 1, "past_sequence_length": 0, "kv_cache_dim": _HEAD_SIZE}
    past = {
        i.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in i.shape], np.float32)
        for i in session.get_inputs()
        if i.name not in fixed
    }
    feeds = {"num_logits_to_keep": np.array(1, np.int64)} if "num_logits_to_keep" in _names(session) else {}
    presents = [name.replace("past_key_values", "present").replace("past", "present") for name in past]
    ids, length, times = np.random.default_rng(0).integers(8, 400, (1, _N_PROMPT)), 0, []
    for _ in range(1 + _N_TOKENS):
        length += ids.shape[1]
        mask = np.ones((1, length), np.int64)
        began = time.perf_counter()
        logits, *present = session.run(
            ["logits", *presents], {**feeds, **past, "input_ids": ids, "attention_mask": mask}
        )
        times.append(time.perf_counter() - began)
        past = dict(zip(past, present, strict=True))
        ids = logits[:, -1].argmax(-1, keepdims=True)
    return {"load_s": load_s, "ms": 1000 * float(np.percentile(times[1:], 10))}


def _names(session) -> set[str]:
    return {i.name for i in session.get_inputs()}


if __name__ == "__main__":
    main()
