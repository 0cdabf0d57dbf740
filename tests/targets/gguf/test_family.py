"""Plans of every text model of the family from its config alone, against llama-quantize's dry run: types and bytes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.policies.gguf import FLOATS
from lfm_convert.targets.gguf.target import TARGET
from support.configs import preset
from support.gguf_dry_run import check_plans, n_bytes

pytestmark = pytest.mark.peers
pytest.importorskip("cyllama.llama.llama_cpp")
pytest.importorskip("gguf")

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


def declared(folder: Path, name: str) -> WeightGraph:
    kind, changes = MODELS[name]
    (folder / "config.json").write_text(json.dumps({**preset(kind), **changes}))
    return open_graph(folder, name=name, weights=False)


@pytest.mark.parametrize("name", MODELS)
def test_types_and_bytes_are_llama_quantizes(tmp_path: Path, name: str) -> None:
    graph = declared(tmp_path, name)
    check_plans(graph, tmp_path)
    assert TARGET.plan(graph, "Q4_0").main_file == f"{name}-Q4_0.gguf"


@pytest.mark.parametrize("quant", FLOATS)
@pytest.mark.parametrize("name", MODELS)
def test_bytes_of_floats(tmp_path: Path, name: str, quant: str) -> None:
    plan = TARGET.plan(declared(tmp_path, name), quant)
    assert {t.encoding.name for t in plan.tensors} <= {quant, "F32"}
    assert all(t.nbytes == n_bytes(t.encoding.name, t.shape) for t in plan.tensors)
    total = sum(math.prod(t.shape) for t in plan.tensors)
    assert sum(math.prod(t.shape) for t in plan.tensors if t.encoding.name == quant) > 0.99 * total
