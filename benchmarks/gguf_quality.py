"""Weight error and divergence of every GGUF quant, with llama-quantize's bytes and with `--refine`, sizes being equal.

    python benchmarks/gguf_quality.py [--model bundled:moe …] [--imatrix FILE] [QUANT …]

Error: root mean square of all weights that are not plain floats, relative to theirs. KLD: mean over all
positions of the validator's prompts, of the graph with decoded weights against the graph itself, float32.
"Blocks" is the share of blocks whose bytes differ.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.plans import Plan, TensorPlan
from lfm_convert.targets.target import get_target
from scoring import Reference

QUANTS = (
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "IQ4_XS",
    "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
)  # fmt: skip
_MAX_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--imatrix")
    parser.add_argument("quants", nargs="*", default=QUANTS)
    arguments = parser.parse_args()
    given = {"imatrix": arguments.imatrix} if arguments.imatrix else {}
    print(
        f"{'model':14} {'quant':10} {'bytes':>10} {'error':>9} {'refined':>9} {'':>6} {'KLD':>9} {'refined':>9} {'':>6}"
        + f" {'blocks':>7}"
    )
    for model in arguments.model or ("bundled:dense", "bundled:moe"):
        reference = _Reference(open_model(model), _MAX_TOKENS)
        for quant in arguments.quants:
            exact = reference.measure(quant, given)
            refined = reference.measure(quant, {**given, "refine": True})
            differ = np.concatenate([(a != b).any(axis=1) for a, b in zip(exact.blocks, refined.blocks, strict=True)])
            print(
                f"{reference.graph.name:14} {quant:10} {exact.n_bytes:10,} {_pair(exact.error, refined.error)} "
                + f"{_pair(exact.kld, refined.kld)} {100 * differ.mean():6.1f}%",
                flush=True,
            )


def _pair(exact: float, refined: float) -> str:
    return f"{exact:9.5f} {refined:9.5f} {100 * (refined / exact - 1):+5.1f}%"


@dataclass(frozen=True)
class _Measured:
    n_bytes: int
    error: float
    kld: float
    blocks: list[np.ndarray]


class _Reference(Reference):
    def measure(self, quant: str, options: dict) -> _Measured:
        plan = get_target("gguf").with_options(options).plan(self.graph, quant)
        weights, error, blocks = _decode(plan)
        return _Measured(plan.tensor_bytes, error, self.kld(weights), blocks)


def _decode(plan: Plan) -> tuple[dict, float, list[np.ndarray]]:
    """What the planned tensors would read back as, their relative error, and their blocks [n, bytes]."""
    weights, lost, whole, blocks = {}, 0.0, 0.0, []
    for tensor in plan.tensors:
        rows = tensor.view.rows(0, tensor.view.n_rows)
        stored = _encode(tensor, rows)
        decoded = tensor.encoding.decode(stored)
        weights[tensor.role, tensor.layer] = ArrayTensor(tensor.name, decoded.reshape(tensor.view.shape))
        if tensor.encoding.can_refine:
            lost += float(np.square(decoded - rows, dtype=np.float64).sum())
            whole += float(np.square(rows, dtype=np.float64).sum())
            blocks.append(stored.reshape(-1, tensor.encoding.layout.itemsize))
    return weights, (lost / whole) ** 0.5, blocks


def _encode(tensor: TensorPlan, rows: np.ndarray) -> np.ndarray:
    weights = [None] if tensor.importance is None else tensor.importance
    slices = np.split(rows, len(weights))
    return np.concatenate([tensor.encoding.encode(s, w)[0] for s, w in zip(slices, weights, strict=True)])


if __name__ == "__main__":
    main()
