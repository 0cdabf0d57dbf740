"""Speed of the GGUF encoders against ggml's C quantizers, on one core in one run.

    python benchmarks/gguf_kernels.py [--rows 4096] [--cols 14336] [NAME …]

A row is one format, without and with importance: megabytes of float32 input per CPU-second, best of several turns
taken alternately, and the ratio; "first" is what compiling costs when no compiled code is on disk.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import numpy as np
from lfm_convert.quantize.encoding import get_encoding, ggml_types
from lfm_convert.targets.gguf.runner import load_library

NAMES = ("Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "Q4_0", "Q8_0", "Q4_1", "Q5_0", "Q5_1", "Q3_K", "Q2_K", "MXFP4")
SLICE_ROWS = 64  # rows encoded a call, as the writer does; C is given the same slices
TURNS = 3
FIRST = """
import numpy, sys, time
from lfm_convert.quantize.encoding import get_encoding, ggml_types
began = time.process_time()
get_encoding(sys.argv[1]).encode(numpy.ones((1, 256), numpy.float32))
print(time.process_time() - began)
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--cols", type=int, default=14336)
    parser.add_argument("names", nargs="*", default=NAMES)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((arguments.rows, arguments.cols), np.float32) * np.float32(0.02)
    importance = rng.random(arguments.cols, np.float32)
    print(f"{'format':8} {'importance':>10} {'C MB/s':>8} {'ours MB/s':>10} {'ratio':>6} {'same':>5} {'first s':>8}")
    for name in arguments.names:
        first = first_call_s(name)
        for weights in (None, importance):
            theirs, ours = partial(c_encode, name, weights), partial(encode, name, weights)
            c_speed, speed = speeds(rows, theirs, ours)
            same = np.array_equal(theirs(rows[:SLICE_ROWS]), ours(rows[:SLICE_ROWS]))
            print(
                f"{name:8} {'no' if weights is None else 'yes':>10} {c_speed:8.0f} {speed:10.0f} {speed / c_speed:6.2f} "
                + f"{'yes' if same else 'NO':>5} {first:8.1f}",
                flush=True,
            )


def speeds(rows: np.ndarray, *encoders: Callable[[np.ndarray], np.ndarray]) -> list[float]:
    """Megabytes per CPU-second of each, the best turn."""
    best = [float("inf")] * len(encoders)
    for _ in range(TURNS):
        for i, encoder in enumerate(encoders):
            began = time.process_time()
            for start in range(0, len(rows), SLICE_ROWS):
                encoder(rows[start : start + SLICE_ROWS])
            best[i] = min(best[i], time.process_time() - began)
    return [rows.nbytes / 1e6 / seconds for seconds in best]


def encode(name: str, importance: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    return get_encoding(name).encode(rows, importance)[0]


def c_encode(name: str, importance: np.ndarray | None, rows: np.ndarray) -> np.ndarray:
    out = np.empty((len(rows), get_encoding(name).row_nbytes(rows.shape[1])), np.uint8)
    quantize = load_library().ggml_quantize_chunk
    quantize.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p)
    weights = None if importance is None else importance.ctypes.data
    quantize(ggml_types()[name], rows.ctypes.data, out.ctypes.data, 0, *rows.shape, weights)
    return out


def first_call_s(name: str) -> float:
    """CPU-seconds of the first call in a process that finds no compiled code."""
    with tempfile.TemporaryDirectory() as empty:
        command = [sys.executable, "-c", FIRST, name]
        done = subprocess.run(
            command, env={**os.environ, "XDG_CACHE_HOME": empty}, capture_output=True, text=True, check=True
        )
    return float(done.stdout)


if __name__ == "__main__":
    main()
