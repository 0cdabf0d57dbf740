"""Sound artifacts of altered copies of the bundled models: what no gate may fail.

Each copy's weights have noise of a few percent, so that a seed is a model of its own that is still a trained one;
random weights would be a model that four bits destroy, which the quality gate rightly says.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from lfm_convert.convert import bundled
from lfm_convert.graph.dtypes import DType, to_bfloat16, widen
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.validate.parity import validate
from lfm_convert.validate.results import Verdict

from support.artifacts import write_artifact
from support.planted_check import few_prompts

_NOISE = 0.03
_QUANTS = {
    "gguf": ("F32", "Q8_0", "Q4_0"),
    "onnx": ("fp32", "fp16", "q8", "q4"),
    "mlx": ("bf16", "8bit", "4bit"),
    "executorch": ("fp32", "8da4w"),
    "coreml": ("fp16", "int8", "int4", "int4-pal"),
    "compressed-tensors": ("W8A16", "W4A16-g32", "FP8"),
}


def altered(seed: int) -> WeightGraph:
    """The bundled mixture (even seeds) or dense model (odd ones), its matrices a little other, exact in bfloat16."""
    graph = open_graph(bundled.path("dense" if seed % 2 else "moe"))
    rng = np.random.default_rng(seed)
    views = {}
    for weight in graph.weights():
        values = weight.view.read()
        if weight.view.n_rows > 1 and weight.role is not Role.CONV_KERNEL:
            values = values * (1 + _NOISE * rng.standard_normal(values.shape, np.float32))
        views[weight.role, weight.layer] = ArrayTensor(weight.view.name, widen(to_bfloat16(values), DType.BF16))
    return graph.with_weights(views)


def clean_failures(seed: int, targets: tuple[str, ...], folder: Path) -> list[str]:
    """What was raised on the sound artifacts of a seed: a line each."""
    graph = altered(seed)
    artifacts = [
        write_artifact(graph, target, quant, folder / f"{target}-{quant}")
        for target in targets
        for quant in _QUANTS[target]
    ]
    report = validate(artifacts, graph, prompts=few_prompts(), threads=1)
    return [f"{r.artifact.label}: {r.message}" for r in report.results if r.verdict is not Verdict.PASS]
