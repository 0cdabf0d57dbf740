"""Memory that runtimes take to run artifacts, against what `plan` says of them.

    python benchmarks/run_memory.py [--shapes dense-350m moe-1.2b] [--cases gguf:Q4_0 …] [--context 1024]

Each artifact is run by its runtime in a process of its own, as apps do: a conversation of the whole context, read 512
tokens at a time, then eight tokens one at a time. Memory is the most that was resident, mapped files included, less what
the process had before it opened the artifact. Ends with 1 if a plan is off by more than 10 %.
Of MLX and ExecuTorch plans count files and caches only, so that they are not here.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from first_command import generate
from lfm_convert.convert import pipeline
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.targets.running import PORTION_TOKENS
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.memory import plan_run_bytes
from processes import measure

CASES = (
    *("gguf:F16", "gguf:Q8_0", "gguf:Q4_K_M", "gguf:Q4_0", "onnx:fp32", "onnx:fp16", "onnx:q8", "onnx:q4"),
    "onnx:q4f16",
)
TOOL = [sys.executable, "-P", "-m", "lfm_convert"]
STEPS = 8
TOLERANCE = 0.10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="*", default=["dense-350m", "moe-1.2b"])
    parser.add_argument("--cases", nargs="*", default=CASES, help="target:quant")
    parser.add_argument("--context", type=int, default=1024)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        print(json.dumps(held(options.run, options.context)))
        return
    is_good = True
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for shape in options.shapes:
            checkpoint = generate(Path(scratch, shape), shape)
            print(
                f"{shape}, {options.context} tokens\n{'case':18} {'file MB':>8} {'plan MB':>8} {'held MB':>8} {'off':>6}"
            )
            for case in options.cases:
                is_good &= row(checkpoint, case, Path(scratch, "out"), options.context)
    sys.exit(0 if is_good else 1)


def row(checkpoint: Path, case: str, out: Path, context: int) -> bool:
    """Converts, runs, prints. Returns whether the plan was right."""
    target, quant = case.split(":")
    graph = pipeline.open_model(str(checkpoint), weights=False)
    (plan,) = pipeline.plan(graph, target=target, quant=quant)
    planned = plan_run_bytes(graph.config, plan, context)
    measure([*TOOL, checkpoint, "--target", target, "--quant", quant, "--out", out, "--no-validate"])
    found = json.loads(measure([sys.executable, __file__, "--run", out, "--context", context]).output)
    shutil.rmtree(out)
    off = planned / found - 1
    sizes = (plan.total_bytes, planned, found)
    print(f"{case:18} {' '.join(f'{size / 1e6:8.0f}' for size in sizes)} {off:+6.1%}", flush=True)
    return abs(off) <= TOLERANCE


def held(folder: Path, context: int) -> int:
    """Bytes that running the artifact of a folder adds to this process at most."""
    (artifact,) = find_artifacts(folder)
    open_artifact = _RUNTIMES[artifact.target]()
    before = _resident("VmRSS")
    read = open_artifact(artifact, context)
    ids = np.random.default_rng(0).integers(100, 1000, context).tolist()
    at = 0
    while at < context:
        n = 1 if at >= context - STEPS else min(PORTION_TOKENS, context - STEPS - at)
        read(ids[at : at + n], at)
        at += n
    return _resident("VmHWM") - before


Read = Callable[[Sequence[int], int], object]


def _llama() -> Callable[[Artifact, int], Read]:
    """llama.cpp with the context parameters that its own tools begin with."""
    from lfm_convert.targets.gguf.probes import sequence_batch
    from lfm_convert.targets.gguf.runner import load_library

    llama = load_library()

    def opened(artifact: Artifact, context: int) -> Read:
        params = llama.llama_model_default_params()
        params.n_gpu_layers = 0
        model = llama.llama_model_load_from_file(os.fsencode(artifact.path), params)
        limits = llama.llama_context_default_params()
        limits.n_ctx = context
        session = llama.llama_init_from_model(model, limits)

        def read(ids: Sequence[int], at: int) -> None:
            batch = sequence_batch([(at, list(ids))])
            for i in range(len(ids) - 1):
                batch.logits[i] = 0
            assert llama.llama_decode(session, batch) == 0

        return read

    return opened


def _onnx() -> Callable[[Artifact, int], Read]:
    from lfm_convert.targets.onnx.runner import OnnxRunner

    def opened(artifact: Artifact, context: int) -> Read:
        runner = OnnxRunner(artifact.path, threads=2)

        def read(ids: Sequence[int], at: int) -> None:
            mask = np.ones((1, at + len(ids)), np.int64)
            runner._past = runner._step(np.array([ids], np.int64), mask, runner._past, n_logits=1)[1]

        return read

    return opened


_RUNTIMES: dict[str, Callable[[], Callable[[Artifact, int], Read]]] = {
    "gguf": _llama,
    "onnx": _onnx,
}


def _resident(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    main()
