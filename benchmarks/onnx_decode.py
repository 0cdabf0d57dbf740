"""Milliseconds a token of our q4 graphs and of onnxruntime-genai's builder's int4, under plain ONNX Runtime.

    python benchmarks/onnx_decode.py [--checkpoint FOLDER] [--rounds 12]      # needs `make clients`

Two generated models: LFM2-8B-A1B's width with six layers, and LFM2-350M's shape. A process feeds a graph 32 tokens,
then decodes 64 one by one. Wall time is with two threads: each graph in a process of its own, ours and the builder's
by turns, the fastest step of all rounds, since what disturbs a machine only ever adds. CPU time is with one thread, both
graphs in one process and step by step in turns, the fastest of each: it says what a graph costs on a busy machine too.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_N_PROMPT, _N_TOKENS = 32, 64
_CLOSE = "1.31.1"  # where it takes many rounds to tell the two apart
_HEAD_SIZE = 64  # head size of every LFM2; the builder's graphs leave it open


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, help="The mixture of experts, if it is there already.")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--only", choices=("dense", "moe"))
    parser.add_argument("--child", type=Path, nargs="+", help=argparse.SUPPRESS)
    parser.add_argument("--threads", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        print(json.dumps(decode(arguments.child, arguments.threads)))
        return
    from onnx_export import ROOT, generate
    from support.checkpoints import make_checkpoint, preset

    runtimes = {_CLOSE: sys.executable, "1.30.0": str(ROOT / ".clients" / "ort-1.30.0" / "bin" / "python")}
    print(f"{'':18} {'wall, 2 threads, ms':^26} {'CPU, 1 thread, ms':^26}")
    columns = f"{'ours':>8} {'builder':>9} {'ratio':>7} "
    print(f"{'model':10} {'runtime':7} {columns}{columns} load s")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if arguments.only != "moe":
            dense = make_checkpoint(folder / "350m", {**preset("dense-350m"), "max_position_embeddings": 4096})
            compare("350M", dense, folder, {_CLOSE: runtimes[_CLOSE]}, arguments.rounds)
        if arguments.only != "dense":
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
        n_rounds = rounds if version == _CLOSE else max(1, rounds // 4)
        apart: list[list[dict]] = [[], []]
        together: list[list[dict]] = [[], []]
        for i in range(n_rounds):
            for graph, results in zip(graphs, apart, strict=True):
                results += _child(python, [graph], threads=2)
            turn = -1 if i % 2 else 1  # what is loaded first runs a few percent slower
            for result, results in zip(_child(python, graphs[::turn], threads=1), together[::turn], strict=True):
                results.append(result)
        wall = [min(result["wall_ms"] for result in results) for results in apart]
        cpu = [min(result["cpu_ms"] for result in results) for results in together]
        cells = " ".join(f"{a:8.2f} {b:9.2f} {a / b:7.3f} " for a, b in (wall, cpu))
        loads = " / ".join(f"{min(result['load_s'] for result in results):.1f}" for results in apart)
        print(f"{name:10} {version:7} {cells} {loads}", flush=True)


def _child(python: str, graphs: Sequence[Path], *, threads: int) -> list[dict]:
    command = [python, __file__, "--threads", str(threads), "--child", *graphs]
    done: list[dict] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return done


def decode(paths: Sequence[Path], threads: int) -> list[dict[str, float]]:
    """Runs in the measured process: of each graph the seconds it loads, and the milliseconds of its fastest step."""
    sequences = [_Sequence(path, threads) for path in paths]
    for i in range(1 + _N_TOKENS):
        for sequence in sequences[:: -1 if i % 2 else 1]:  # so that neither always runs behind the other
            sequence.step()
    return [
        {"load_s": each.load_s, "wall_ms": 1000 * min(each.wall[1:]), "cpu_ms": 1000 * min(each.cpu[1:])}
        for each in sequences
    ]


class _Sequence:
    """A graph in a session of its own, and one conversation; the first step is the prompt."""

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.log_severity_level = threads, 3
        began = time.perf_counter()
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.load_s = time.perf_counter() - began
        inputs, sizes = (
            self._session.get_inputs(),
            {"batch_size": 1, "past_sequence_length": 0, "kv_cache_dim": _HEAD_SIZE},
        )
        self._past = {
            i.name: np.zeros([sizes[d] if isinstance(d, str) else d for d in i.shape], np.float32)
            for i in inputs
            if i.name not in ("input_ids", "attention_mask", "num_logits_to_keep")
        }
        has_count = any(i.name == "num_logits_to_keep" for i in inputs)
        self._count = {"num_logits_to_keep": np.array(1, np.int64)} if has_count else {}
        present = [name.replace("past_key_values", "present").replace("past", "present") for name in self._past]
        self._outputs = ["logits", *present]
        self._ids, self._length = np.random.default_rng(0).integers(8, 400, (1, _N_PROMPT)), 0
        self.wall: list[float] = []
        self.cpu: list[float] = []

    def step(self) -> None:
        """Feeds what the last step gave; notes the seconds of wall and CPU time."""
        self._length += self._ids.shape[1]
        mask = np.ones((1, self._length), np.int64)
        feeds = {**self._count, **self._past, "input_ids": self._ids, "attention_mask": mask}
        began = time.perf_counter(), time.process_time()
        logits, *present = self._session.run(self._outputs, feeds)
        self.wall.append(time.perf_counter() - began[0])
        self.cpu.append(time.process_time() - began[1])
        self._past = dict(zip(self._past, present, strict=True))
        self._ids = logits[:, -1].argmax(-1, keepdims=True)


if __name__ == "__main__":
    main()
