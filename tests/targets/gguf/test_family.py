"""Plans of every text model of the family from its config alone, against llama-quantize's dry run: types and bytes."""

from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.policies.gguf import FILE_TYPES, FLOATS
from lfm_convert.targets.gguf.target import TARGET
from support.configs import preset

pytestmark = pytest.mark.peers
pytest.importorskip("cyllama.llama.llama_cpp")
gguf = pytest.importorskip("gguf")

# Model -> its config (facts/family.md E2): what is listed differs from the preset.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "LFM2.5-230M": ("dense-230m", {}),
    "LFM2-350M": ("dense-350m", {}),
    "LFM2-700M": ("dense-700m", {}),
    "LFM2-1.2B": ("dense-1.2b", {}),
    "LFM2-2.6B": ("dense-2.6b", {"vocab_size": 65_536}),
    "LFM2.5-2.6B": ("dense-2.6b", {}),
    "LFM2-8B-A1B": ("moe-8b", {}),
    "LFM2.5-8B-A1B": ("moe-8b", {"vocab_size": 128_000}),
    "LFM2-24B-A2B": ("moe-24b", {}),
}
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
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[encoding]]
    return math.prod(shape) // block * size


def declared(folder: Path, name: str) -> WeightGraph:
    kind, changes = MODELS[name]
    (folder / "config.json").write_text(json.dumps({**preset(kind), **changes}))
    return open_graph(folder, name=name, weights=False)


@pytest.mark.parametrize("name", MODELS)
def test_types_and_bytes_are_llama_quantizes(tmp_path: Path, name: str) -> None:
    graph = declared(tmp_path, name)
    original = TARGET.plan(graph, "BF16")
    path = tmp_path / "sparse.gguf"  # of its tensors the dry run reads no value
    with path.open("wb") as file:
        file.write(original.details[original.main_file])
        file.truncate(original.total_bytes)
    for quant, theirs in dry_runs(path).items():
        plan = TARGET.plan(graph, quant)
        assert {t.name: t.encoding.name for t in plan.tensors} == {n: kind for n, (kind, _) in theirs.items()}, quant
        sizes = {each: n_bytes(kind, shape) for each, (kind, shape) in theirs.items()}
        assert {t.name: t.nbytes for t in plan.tensors} == sizes, quant
        assert plan.tensor_bytes == sum(-(-size // 32) * 32 for size in sizes.values()), quant
        assert plan.main_file == f"{name}-{quant}.gguf"


@pytest.mark.parametrize("quant", FLOATS)
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_floats(tmp_path: Path, name: str, quant: str) -> None:
    plan = TARGET.plan(declared(tmp_path, name), quant)
    assert {t.encoding.name for t in plan.tensors} <= {quant, "F32"}
    assert all(t.nbytes == n_bytes(t.encoding.name, t.shape) for t in plan.tensors)
    total = sum(math.prod(t.shape) for t in plan.tensors)
    assert sum(math.prod(t.shape) for t in plan.tensors if t.encoding.name == quant) > 0.99 * total
