"""Weight error and divergence of every MLX quant, with mlx_lm's values and with `--refine`, bytes being equal.

    python benchmarks/mlx_quality.py [--model bundled:moe …] [QUANT …]

Error: root mean square of all weights that are not plain floats, relative to theirs. KLD: mean over all
positions of the validator's prompts, of the graph with decoded weights against the graph itself, float32.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.plans import Plan
from lfm_convert.targets.target import Target, get_target
from scoring import Reference

QUANTS = ("8bit", "6bit", "5bit", "4bit", "4bit-g32", "mixed_4_8", "3bit", "mxfp8", "mxfp4", "nvfp4")
_MAX_TOKENS = 128


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("quants", nargs="*", default=QUANTS)
    arguments = parser.parse_args()
    print(
        f"{'model':14} {'quant':10} {'bytes':>10} {'error':>9} {'refined':>9} {'':>6} {'KLD':>9} {'refined':>9} {'':>6}"
    )
    for model in arguments.model or ("bundled:dense", "bundled:moe"):
        measured = _Reference(open_model(model), _MAX_TOKENS)
        for quant in arguments.quants:
            exact, refined = (measured.measure(target, quant) for target in _targets())
            print(
                f"{measured.graph.name:14} {quant:10} {exact.n_bytes:10,} {_pair(exact.error, refined.error)} "
                + _pair(exact.kld, refined.kld),
                flush=True,
            )


def _targets() -> tuple[Target, Target]:
    target = get_target("mlx")
    return target, target.with_options({"refine": True})


def _pair(exact: float, refined: float) -> str:
    return f"{exact:9.5f} {refined:9.5f} {100 * (refined / exact - 1):+5.1f}%"


@dataclass(frozen=True)
class _Measured:
    n_bytes: int
    error: float
    kld: float


class _Reference(Reference):
    def measure(self, target: Target, quant: str) -> _Measured:
        plan = target.plan(self.graph, quant)
        weights, error = _decode(plan)
        return _Measured(plan.tensor_bytes, error, self.kld(weights))


def _decode(plan: Plan) -> tuple[dict, float]:
    """What the planned tensors would read back as, and their relative error."""
    weights, lost, whole = {}, 0.0, 0.0
    for tensor in plan.tensors:
        rows = tensor.view.rows(0, tensor.view.n_rows)
        decoded = tensor.encoding.decode(*tensor.encoding.encode(rows))
        weights[tensor.role, tensor.layer] = ArrayTensor(tensor.name, decoded.reshape(tensor.view.shape))
        if len(tensor.placements) > 1:
            lost += float(np.square(decoded - rows, dtype=np.float64).sum())
            whole += float(np.square(rows, dtype=np.float64).sum())
    return weights, (lost / whole) ** 0.5


if __name__ == "__main__":
    main()
