"""What allotted encodings are worth at equal bytes: the divergence of named quants, and of files that are as large.

    python benchmarks/allotment_quality.py [--model bundled:dense …] [--target gguf …] [--text FILE …] [--keep FOLDER]

Statistics are of `--text`, by default the text that comes with the tool; the divergence is over the validator's prompts, of the graph with decoded weights against the graph itself. Two allotments are controls: with what
errors cost dealt to other weights at random, and with the order of the weights turned over. Last come five sizes, each
against the best named quant that fits it.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from lfm_convert.convert.pipeline import measure_costs, open_model
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.allotment.kept import read_costs
from lfm_convert.quantize.statistics.statistics import open_statistics
from lfm_convert.targets.lossy import planned
from lfm_convert.targets.plans import Plan, TensorPlan
from lfm_convert.targets.target import Target, get_target
from scoring import Reference

BASES = {
    "gguf": "Q4_K_M", "mlx": "4bit", "onnx": "q4_mixed", "coreml": "int4", "executorch": "8da4w",
    "compressed-tensors": "W4A16-g32",
}  # fmt: skip
UNIFORM = {
    "gguf": ("Q2_K", "Q3_K_S", "Q3_K_M", "Q3_K_L", "IQ4_XS", "Q4_K_S", "Q4_K_M", "Q5_K_S", "Q5_K_M", "Q6_K", "Q8_0"),
    "mlx": ("2bit", "3bit", "4bit-g128", "4bit", "5bit", "6bit", "8bit"),
    "onnx": ("q4", "q4_mixed", "q8"),
    "coreml": ("int4", "int8"),
    "executorch": ("8da4w-g128", "8da4w-g64", "8da4w", "8da8w"),
    "compressed-tensors": ("W4A16", "W4A16-g64", "W4A16-g32", "W8A16"),
}
_CHUNK, _MAX_TOKENS = 256, 160


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--target", action="append")
    parser.add_argument("--text", action="append", type=Path)
    parser.add_argument("--keep", type=Path, help="keeps the statistics here for the next time")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        home = arguments.keep or Path(scratch)
        for model in arguments.model or ("bundled:dense", "bundled:moe", "bundled:lfm3"):
            graph = open_model(model)
            statistics = _statistics(graph, home / graph.name, arguments.text or ())
            reference = Reference(graph, _MAX_TOKENS)
            for name in arguments.target or ("gguf", "mlx"):
                _compare(reference, get_target(name), statistics, Path(scratch))


def _statistics(graph: WeightGraph, folder: Path, texts: Sequence[Path]) -> Path:
    if not folder.is_dir():
        write_statistics(graph, texts, folder, chunk_size=_CHUNK)
    return folder


def _compare(reference: Reference, target: Target, statistics: Path, scratch: Path) -> None:
    graph, base = reference.graph, BASES[target.name]
    stock, tuned = _stock(target, statistics), target.with_options({"statistics": str(statistics)})
    measure_costs(graph, tuned, [f"{base}-tuned", f"{target.auto_base}-tuned"])
    plan = stock.plan(graph, base)
    whole = _kld(reference, plan)
    _tell(graph, target, base, plan, whole, None, None)
    mine = planned(tuned, graph, f"{base}-tuned")
    _tell(graph, target, "allotted", mine, _kld(reference, mine), whole, mine.tuned["bits"]["predicted_kld"])
    for name, order in (("at random", _shuffled), ("turned over", _turned)):
        control = _dealt(graph, target, statistics, scratch / f"{graph.name}-{target.name}-{name}", order)
        other = planned(tuned.with_options({"statistics": str(control)}), graph, f"{base}-tuned")
        _tell(graph, target, name, other, _kld(reference, other), whole, None)
    uniform = [(plan.total_bytes, _kld(reference, plan), name) for name, plan in _plans(stock, graph)]
    least, most = min(uniform)[0], max(uniform)[0]
    for share in (0.05, 0.25, 0.45, 0.7, 0.95):
        budget = int(least + share * (most - least))
        plan = planned(tuned, graph, f"auto-{budget}B")
        _, kld, name = min((each for each in uniform if each[0] <= budget), key=lambda each: each[1])
        found = _kld(reference, plan)
        _tell(graph, target, f"auto, {name}", plan, found, kld, plan.tuned["bits"]["predicted_kld"], budget=budget)


def _stock(target: Target, statistics: Path) -> Target:
    weighs = hasattr(target, "imatrix") and not target.weighs_refined_only
    return target.with_options({"imatrix": str(statistics / "imatrix.gguf")}) if weighs else target


def _plans(target: Target, graph: WeightGraph) -> list[tuple[str, Plan]]:
    return [(name, target.plan(graph, name)) for name in UNIFORM[target.name]]


def _tell(
    graph: WeightGraph, target: Target, name: str, plan: Plan, kld: float, other: float | None,
    predicted: float | None, *, budget: int | None = None,
) -> None:  # fmt: skip
    change = "" if other is None else f"{100 * (kld / other - 1):+6.1f}%"
    said = "" if predicted is None else f"predicted {predicted:.5f}"
    filled = "" if budget is None else f"{100 * plan.total_bytes / budget:7.2f}% of {budget:,}"
    print(
        f"{graph.name:12} {target.name:10} {name:18} {plan.total_bytes:10,} {kld:9.5f} {change:>8} {said:18} {filled}",
        flush=True,
    )


def _shuffled(sensitivities: np.ndarray) -> np.ndarray:
    return np.random.default_rng(1).permutation(sensitivities)


def _turned(sensitivities: np.ndarray) -> np.ndarray:
    ranks = np.argsort(np.argsort(sensitivities))
    return np.sort(sensitivities)[::-1][ranks]


def _dealt(
    graph: WeightGraph,
    target: Target,
    statistics: Path,
    folder: Path,
    order: Callable[[np.ndarray], np.ndarray],
) -> Path:
    """Statistics as they are, but for what errors cost: what one weight loses, a parameter, is said of another."""
    shutil.copytree(statistics, folder)
    sha256 = open_statistics(folder, graph).sha256
    sizes = {
        w.role.value if w.layer is None else f"{w.role.value}.{w.layer}": w.view.n_rows * w.view.n_cols
        for w in graph.weights()
    }
    for path in (folder / "costs").glob(f"{target.name}*.json"):
        kept = read_costs(folder, sha256, path.stem)
        names = [name for name in kept.losses if name in sizes]
        each = np.array([max(_finite(kept.losses[name])) / sizes[name] for name in names])
        for name, factor in zip(names, order(each) / each, strict=True):
            kept.losses[name] = {encoding: loss * factor for encoding, loss in kept.losses[name].items()}
        kept.save()
    return folder


def _finite(losses: Mapping[str, float]) -> list[float]:
    return [loss for loss in losses.values() if np.isfinite(loss)]


def _kld(reference: Reference, plan: Plan) -> float:
    """Mean divergence of the graph with the weights that a plan would store."""
    rows: dict = {}
    for tensor in plan.tensors:
        is_float = tensor.encoding.class_name in ("f16", "f32")  # which may lie in an order of their own
        if tensor.role is not None and not is_float:
            rows.setdefault((tensor.role, tensor.layer), []).append(_decoded(tensor))
    shapes = {weight.address: weight.shape for weight in reference.graph.weights()}
    views = {
        address: ArrayTensor("decoded", np.concatenate(parts).reshape(shapes.get(address, parts[0].shape)))
        for address, parts in rows.items()
    }
    return reference.kld(views)


def _decoded(tensor: TensorPlan) -> np.ndarray:
    weights = [None] if tensor.importance is None else tensor.importance
    slices = np.split(tensor.view.rows(0, tensor.view.n_rows), len(weights))
    encoding = tensor.encoding
    return np.concatenate([encoding.decode(*encoding.encode(s, w)) for s, w in zip(slices, weights, strict=True)])


if __name__ == "__main__":
    main()
