"""Core ML packages beside coremltools' own: error and divergence a byte, memory of writing and of evaluating.

    python benchmarks/coreml_export.py [--only quality|dense|mixture] [--model bundled:moe …] [--scratch FOLDER]

quality: every quant of the bundled models. The peer's rows are what `linear_quantize_weights` and `palettize_weights` make
of the same matrices in float16, the table in 8 bits as ours. Error is that of all matrices, relative; KLD the mean over the
validator's prompts of the graph with decoded weights against the graph itself, of a mixture the median: its mean is that
of a few positions at which near-ties of routers turn over. "a byte" is the divergence as if a weight took the bits that
ours takes: at high rate a bit is worth a factor of four.
dense: a generated checkpoint of LFM2-1.2B's shape in int4: peak resident memory of a process that writes it, of one that
evaluates four tokens, and of one in which coremltools builds and saves a program of the same matrices.
mixture: a generated one of LFM2-8B-A1B's shape, written; 21 GB of disk.
Exits with 1 if a figure is above its limit, or a peer is better.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role, Trait
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.target import get_target
from lfm_convert.validate.metrics import position_kld
from lfm_convert.validate.prompts import encode_prompts, load_prompts
from processes import Measured, measure

ROOT = Path(__file__).resolve().parents[1]
_MODELS = ("bundled:dense", "bundled:moe", "bundled:lfm3")
_MAX_TOKENS = 128
_MATRICES = (Trait.MATRIX, Trait.EXPERTS, Trait.TABLE, Trait.HEAD)
# GB of the shapes' files and of peak memory, at most.
_LIMITS = {"file": 0.75, "writing": 0.5, "evaluating": 2.0}

# Float16 weights [..., out, in] as stored and decoded by somebody: the decoded ones, and the bits that they take.
Coder = Callable[[np.ndarray], tuple[np.ndarray, float]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("quality", "dense", "mixture"))
    parser.add_argument("--model", action="append")
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        {"evaluate": _evaluate, "peer": _build_as_peer}[arguments.run[0]](Path(arguments.run[1]))
        return
    failed: list[str] = []
    if arguments.only in (None, "quality"):
        for model in arguments.model or _MODELS:
            failed += quality(open_model(model))
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as name:
        if arguments.only in (None, "dense"):
            failed += dense(Path(name))
        if arguments.only in (None, "mixture"):
            mixture(Path(name))
    if failed:
        raise SystemExit("; ".join(failed))


# Quality.


@dataclass(frozen=True)
class _Row:
    name: str
    bits: float
    error: float
    kld: float


def quality(graph: WeightGraph) -> list[str]:
    """Prints a table; returns what the peer is better at."""
    reference = _Reference(graph)
    own = {quant: reference.measure(quant, _planned(graph, quant)) for quant in ("int8", "int4", "int4-pal")}
    peers = {
        "int8": [("linear int8 a row", _linear(8, "LINEAR_SYMMETRIC", 0))],
        "int4": [
            ("linear int4 block 32", _linear(4, "LINEAR_SYMMETRIC", 32)),
            ("linear int4 block 32 offset", _linear(4, "LINEAR", 32)),
        ],
        "int4-pal": [("palettes of 16 rows", _palettes(16))],
    }
    failed = []
    print(f"\n{graph.name}\n{'':30} {'bits':>7} {'error':>9} {'KLD':>10} {'a byte':>10}")
    for quant, coders in peers.items():
        rows = [own[quant], *(reference.measure(name, _coded(graph, coder)) for name, coder in coders)]
        for row in rows:
            print(
                f"{row.name:30} {row.bits:7.3f} {row.error:9.5f} {row.kld:10.6f} {_a_byte(row, rows[0]):10.6f}",
                flush=True,
            )
        better = [row.name for row in rows[1:] if _a_byte(row, rows[0]) < rows[0].kld]
        failed += [f"{graph.name}: {name} is better than {quant}" for name in better]
    return failed


def _a_byte(row: _Row, own: _Row) -> float:
    """The divergence as if the row took the bits that ours takes."""
    return float(row.kld * 4 ** (row.bits - own.bits))


_Decoded = Iterator[tuple[Weight, np.ndarray, float]]


class _Reference:
    """A graph, its prompts, and its own logits of them."""

    def __init__(self, graph: WeightGraph) -> None:
        self.graph = graph
        encoded = encode_prompts(load_prompts(None), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
        self._prompts = [prompt.token_ids[:_MAX_TOKENS] for prompt in encoded]
        self._logits = Forward(graph).prefill(self._prompts)[0]

    def measure(self, name: str, decoded: _Decoded) -> _Row:
        views, lost, whole, bits, count = {}, 0.0, 0.0, 0.0, 0
        for weight, values, n_bits in decoded:
            views[weight.address] = ArrayTensor(weight.view.name, values)
            if weight.role.trait in _MATRICES:
                exact = weight.view.read()
                lost += float(np.square(values - exact, dtype=np.float64).sum())
                whole += float(np.square(exact, dtype=np.float64).sum())
                bits, count = bits + n_bits, count + exact.size
        logits = Forward(self.graph.with_weights(views)).prefill(self._prompts)[0]
        kld = np.concatenate([position_kld(a, b) for a, b in zip(self._logits, logits, strict=True)])
        middle = np.median if self.graph.config.is_mixture else np.mean
        return _Row(name, bits / count, (lost / whole) ** 0.5, float(middle(kld)))


def _planned(graph: WeightGraph, quant: str) -> _Decoded:
    """Our own."""
    tensors = {(t.role, t.layer): t for t in get_target("coreml").plan(graph, quant).tensors}
    for weight in graph.weights():
        if weight.role.trait is not Trait.KERNEL:
            encoding = tensors[weight.address].encoding
            rows = weight.view.rows(0, weight.view.n_rows)
            values = encoding.decode(*encoding.encode(rows)).reshape(weight.shape)
            yield weight, values, 8.0 * tensors[weight.address].nbytes


def _coded(graph: WeightGraph, coder: Coder) -> _Decoded:
    """The peer's matrices; of what ours does not store in its quant, such as tables and gates, ours."""
    for weight, values, bits in _planned(graph, "int8"):
        is_coded = weight.role.trait in (Trait.MATRIX, Trait.EXPERTS) and weight.role is not Role.ATTN_GATE
        if is_coded:
            values, bits = coder(weight.view.read().astype(np.float16))
        yield weight, values.astype(np.float32), bits


def _linear(n_bits: int, mode: str, block: int) -> Coder:
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights as peer

    def code(values: np.ndarray) -> tuple[np.ndarray, float]:
        sizes = [*[1] * (values.ndim - 1), block]
        params = peer.blockwise_compress(values, n_bits, mode, True, sizes)
        offsets = 0 if params.offset is None else params.offset.size * n_bits
        return peer.decompress(params), values.size * n_bits + params.scale.size * 16 + offsets

    return code


def _palettes(n_rows: int) -> Coder:
    from coremltools.optimize.coreml._quantization_passes import palettize_weights as peer

    def code(values: np.ndarray) -> tuple[np.ndarray, float]:
        if values.ndim == 3:
            coded = [code(each) for each in values]
            return np.stack([each for each, _ in coded]), sum(bits for _, bits in coded)
        params = peer.blockwise_compress(values, "KMEANS", 4, [n_rows, 0])
        return peer.decompress(params), values.size * 4 + params.lut.size * 16

    return code


# Memory.


def dense(scratch: Path) -> list[str]:
    """Prints what writing, evaluating and the peer take; returns what is above its limit."""
    checkpoint = _generate("dense-1.2b", scratch)
    written = _write(checkpoint, scratch / "dense")
    package = next((scratch / "dense").glob("*.mlpackage"))
    size = sum(file.stat().st_size for file in package.rglob("*") if file.is_file()) / 1e9
    evaluated = measure([sys.executable, __file__, "--run", "evaluate", package])
    print(f"\nLFM2-1.2B's shape, int4: {size:.4f} GB")
    _show("written", written)
    _show("four tokens evaluated", evaluated)
    _show("built by coremltools", measure([sys.executable, __file__, "--run", "peer", checkpoint]))
    found = {"file": size, "writing": written.rss_gb, "evaluating": evaluated.rss_gb}
    return [f"{name}: {gb:.2f} GB, at most {_LIMITS[name]}" for name, gb in found.items() if gb > _LIMITS[name]]


def mixture(scratch: Path) -> None:
    written = _write(_generate("moe-8b", scratch), scratch / "mixture")
    print("\nLFM2-8B-A1B's shape, int4")
    _show("written", written)


def _generate(kind: str, scratch: Path) -> Path:
    script = ROOT / "tests" / "support" / "checkpoints.py"
    subprocess.run([sys.executable, script, "--kind", kind, scratch / kind], check=True, stdout=sys.stderr)
    return scratch / kind


def _write(checkpoint: Path, out: Path) -> Measured:
    command = [sys.executable, "-P", "-m", "lfm_convert", checkpoint, "--target", "coreml", "--quant", "int4"]
    return measure([*command, "--out", out, "--no-validate"])


def _show(what: str, found: Measured) -> None:
    print(
        f"{what:24} {found.wall_s:7.0f} s {found.cpu_s:7.0f} CPU s {found.rss_gb:6.2f} GB resident "
        f"{found.anonymous_gb:6.2f} GB anonymous",
        flush=True,
    )


def _evaluate(package: Path) -> None:
    """Four tokens, one by one."""
    from lfm_convert.targets.coreml.runner import CoremlRunner

    runner = CoremlRunner(package, threads=2)
    for token in (1, 5, 6, 7):
        runner.extend([token])


def _build_as_peer(checkpoint: Path) -> None:
    """Every matrix of a checkpoint in blocks of 32 as constants of one program, converted and saved by coremltools."""
    import coremltools
    from coremltools.converters.mil import Builder
    from coremltools.converters.mil.mil import types
    from coremltools.optimize.coreml._quantization_passes import linear_quantize_weights as peer

    matrices = [w for w in open_graph(checkpoint).weights() if w.role.trait in _MATRICES]
    widest = max(weight.shape[-1] for weight in matrices)

    @Builder.program(input_specs=[Builder.TensorSpec((1, widest), types.fp16)], opset_version=coremltools.target.iOS18)
    def program(x: Any) -> Any:
        total = None
        for weight in matrices:
            params = peer.blockwise_compress(weight.view.read().astype(np.float16), 4, "LINEAR", True, [1, 32])
            decoded = Builder.constexpr_blockwise_shift_scale(
                data=params.data, scale=params.scale, offset=params.offset
            )
            row = Builder.slice_by_index(x=x, begin=[0, 0], end=[1, weight.shape[-1]])
            product = Builder.linear(x=row, weight=decoded)
            summed = Builder.reduce_sum(x=product, axes=[1])
            total = summed if total is None else Builder.add(x=total, y=summed)
        return total

    model = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18, skip_model_load=True)
    with tempfile.TemporaryDirectory() as name:
        model.save(f"{name}/peer.mlpackage")


if __name__ == "__main__":
    main()
