"""Which tensors llama.cpp holds a second time, by what the library itself says of its buffers."""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.convert.pipeline import convert
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.gguf.runner import _LOG, load_library
from lfm_convert.targets.gguf.running import repacked_bytes
from lfm_convert.targets.target import ListedTensor

pytestmark = [
    pytest.mark.peers,
    pytest.mark.skipif(
        "avx2" not in Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").is_file() else True,
        reason="which types are repacked depends on the processor: this is about those with AVX2",
    ),
]


@pytest.fixture
def log() -> Iterator[list[str]]:
    """What llama.cpp prints."""
    lines: list[str] = []
    library = load_library()
    callback = type(_LOG)(lambda level, text, _: lines.append(text.decode("utf-8", "replace")))
    library.llama_log_set(callback, None)
    yield lines
    library.llama_log_set(_LOG, None)


@pytest.mark.parametrize("quant", ["Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q4_1", "Q3_K_M", "IQ4_NL", "MXFP4_MOE"])
def test_llama_cpp_says_the_same(quant: str, log: list[str], moe_graph: WeightGraph, tmp_path: Path) -> None:
    convert(moe_graph, target="gguf", quant=quant, out=tmp_path)
    (artifact,) = find_artifacts(tmp_path)
    library = load_library()
    params = library.llama_model_default_params()
    params.n_gpu_layers = 0
    model = library.llama_model_load_from_file(os.fsencode(artifact.path), params)
    library.llama_model_free(ctypes.c_void_p(model))
    found = re.search(r"CPU_REPACK model buffer size = +([\d.]+) MiB", "".join(log))
    listed = [ListedTensor(t["name"], t["encoding"], t["bytes"]) for t in artifact.entry["tensors"]]
    assert repacked_bytes(listed) / 2**20 == pytest.approx(float(found[1]) if found else 0.0, abs=0.006)
