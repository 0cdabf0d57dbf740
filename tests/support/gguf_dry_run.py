"""What llama-quantize says it would write, without reading a weight."""

from __future__ import annotations

import math
import re
import subprocess
import sys
from pathlib import Path

from lfm_convert.graph.graph import WeightGraph
from lfm_convert.quantize.policies.gguf import FILE_TYPES, FLOATS
from lfm_convert.targets.gguf.target import TARGET

QUANTS = [policy.name for policy in TARGET.policies if policy.name not in FLOATS]
DRY_RUN = """
import sys
from cyllama.llama.llama_cpp import LlamaModelQuantizeParams, model_quantize
params = LlamaModelQuantizeParams()
params.nthread, params.dry_run = 1, True
for quant in sys.argv[2:]:
    params.ftype = int(quant)
    print(f"quant {quant}", file=sys.stderr, flush=True)
    model_quantize(sys.argv[1], sys.argv[1] + ".out", params)
"""
LINE = re.compile(r"\[ *\d+/ *\d+\] (\S+) +- \[ *([\d, ]+)\], type = +(\w+), size = [^(\n]*(?:\((\w+)\))?")


def dry_runs(path: Path) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Of each quant, type and shape of each tensor as llama-quantize would write it."""
    command = [sys.executable, "-c", DRY_RUN, str(path), *(str(FILE_TYPES[quant]) for quant in QUANTS)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    found = {}
    for quant, section in zip(QUANTS, re.split(r"^quant \d+$", said, flags=re.MULTILINE)[1:], strict=True):
        found[quant] = {
            name: ((after or before).upper(), tuple(int(n) for n in shape.split(",")))
            for name, shape, before, after in LINE.findall(section)
        }
    return found


def n_bytes(encoding: str, shape: tuple[int, ...]) -> int:
    import gguf

    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    return math.prod(shape) // block * size


def check_plans(graph: WeightGraph, folder: Path) -> None:
    """Fails unless types, shapes and bytes of every quant of a model are those of the dry run."""
    original = TARGET.plan(graph, "BF16")
    path = folder / "sparse.gguf"  # of its tensors the dry run reads no value
    with path.open("wb") as file:
        file.write(original.details[original.main_file])
        file.truncate(original.total_bytes)
    for quant, theirs in dry_runs(path).items():
        plan = TARGET.plan(graph, quant)
        assert {t.name: t.encoding.name for t in plan.tensors} == {n: kind for n, (kind, _) in theirs.items()}, quant
        sizes = {each: n_bytes(kind, shape) for each, (kind, shape) in theirs.items()}
        assert {t.name: t.nbytes for t in plan.tensors} == sizes, quant
        assert plan.tensor_bytes == sum(-(-size // 32) * 32 for size in sizes.values()), quant
