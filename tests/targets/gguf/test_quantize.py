"""Our files against those llama-quantize writes from our float files: types, bytes, whole files."""

from __future__ import annotations

import ctypes
import filecmp
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.encoding import ggml_types
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.imatrix import importance_bytes, read_importance
from lfm_convert.quantize.policies.gguf import FILE_TYPES, FLOATS
from lfm_convert.targets.gguf.target import TARGET
from support.checkpoints import dense_25_config, dense_config, moe_config

pytestmark = pytest.mark.peers
llama = pytest.importorskip("cyllama.llama.llama_cpp")

QUANTS = [policy.name for policy in TARGET.policies if policy.name not in FLOATS]
MODELS = {
    "mixture of five": moe_config(
        hidden_size=256, moe_intermediate_size=256, intermediate_size=512, num_hidden_layers=8, num_experts=5
    ),
    "mixture of eight, taken for Mixtral": moe_config(hidden_size=256, moe_intermediate_size=256),
    "untied dense of sixteen layers": dense_config(
        hidden_size=256, block_ff_dim=384, tie_embedding=False, num_hidden_layers=16
    ),
    "rows that K blocks do not divide": moe_config(num_experts=4),
    "rows that no block divides": dense_25_config(hidden_size=288, intermediate_size=272),
}


class _Importance(ctypes.Structure):
    """`llama_model_imatrix_data`."""

    _fields_ = (("name", ctypes.c_char_p), ("data", ctypes.c_void_p), ("size", ctypes.c_size_t))


def quantized(source: Path, quant: str, out: Path, *, imatrix: Path | None = None, **options: Any) -> Path:
    """The file llama-quantize writes."""
    params = llama.LlamaModelQuantizeParams()
    params.ftype, params.nthread = FILE_TYPES[quant], 2
    for key, value in options.items():
        setattr(params, key, value)
    kept = _set_importance(params, imatrix) if imatrix else None
    llama.model_quantize(str(source), str(out), params)
    del kept
    return out


def _set_importance(params: Any, path: Path) -> Any:
    """cyllama offers no way to set the pointer: it is found in the object behind the threads and the file type."""
    means = read_importance(path).means
    entries = [_Importance(name.encode(), values.ctypes.data, values.size) for name, values in means.items()]
    array = (_Importance * (len(entries) + 1))(*entries, _Importance())
    mark = np.array([params.nthread, params.ftype], "<i4").tobytes()
    at = ctypes.string_at(id(params), 96).index(mark)
    ctypes.c_void_p.from_address(id(params) + at + 24).value = ctypes.addressof(array)
    return array, means


def quants(name: str) -> list[str]:
    """Those cyllama's llama.cpp can do: for 32-element types it has no fallback yet, which later ones have."""
    return [quant for quant in QUANTS if name != "rows that no block divides" or "_K" in quant or quant == "IQ4_XS"]


@pytest.fixture
def imatrix(tmp_path: Path) -> Any:
    """Writes random importance of every matrix of a graph's layers; one expert of the first stack was never hit."""

    def write(graph: WeightGraph) -> Path:
        rng = np.random.default_rng(11)
        uses = {}
        for tensor in TARGET.plan(graph, "F32").tensors:
            if tensor.layer is not None and len(tensor.shape) > 1 and "conv.conv" not in tensor.name:
                n = tensor.shape[0] if len(tensor.shape) == 3 else 1
                counts = rng.integers(1, 50, n).astype(np.float32)
                if n > 1 and all(use.counts.all() for use in uses.values()):
                    counts[1] = 0
                uses[tensor.name] = Use((rng.random((n, tensor.shape[-1])) ** 4 * 50).astype(np.float32), counts)
        path = tmp_path / "imatrix.gguf"
        path.write_bytes(importance_bytes(uses, datasets=("random",), n_chunks=3, chunk_size=512))
        return path

    return write


# These two show every rule of the mixtures; the others take minutes on a busy machine.
EACH_MODEL = [pytest.param(name, marks=[] if i in (0, 2) else pytest.mark.slow) for i, name in enumerate(MODELS)]


@pytest.mark.parametrize("name", EACH_MODEL)
def test_whole_files_are_llama_quantizes(make_graph: Any, write_quant: Any, tmp_path: Path, name: str) -> None:
    graph = make_graph(MODELS[name])
    original = write_quant(graph, "BF16").path
    for quant in quants(name):
        theirs = quantized(original, quant, tmp_path / "theirs.gguf")
        assert filecmp.cmp(write_quant(graph, quant).path, theirs, shallow=False), quant


@pytest.mark.parametrize("name", EACH_MODEL)
def test_tensors_are_llama_quantizes_with_importance(
    make_graph: Any, write_quant: Any, imatrix: Any, tmp_path: Path, name: str
) -> None:
    """All but what the command line, not the library, notes of the matrix in the metadata."""
    graph = make_graph(MODELS[name])
    path = imatrix(graph)
    original = write_quant(graph, "F32").path
    for quant in quants(name):
        theirs = read_gguf(quantized(original, quant, tmp_path / "theirs.gguf", imatrix=path))
        ours = read_gguf(write_quant(graph, quant, imatrix=str(path)).path)
        assert ours.tensors == theirs.tensors, quant
        assert ours.path.read_bytes()[ours.data_offset :] == theirs.path.read_bytes()[theirs.data_offset :], quant
        notes = {key: value for key, value in ours.metadata.items() if key not in theirs.metadata}
        assert notes == {
            "quantize.imatrix.file": path.name,
            "quantize.imatrix.dataset": "random",
            "quantize.imatrix.entries_count": len(read_importance(path).means),
            "quantize.imatrix.chunks_count": 3,
        }


@pytest.mark.parametrize(
    "options",
    [
        {"pure": True},
        {"token_embedding_type": "Q5_1"},
        {"output_tensor_type": "q4_k"},
        {"output_tensor_type": "Q8_0", "pure": True},
        {"token_embedding_type": "Q3_K", "output_tensor_type": "IQ4_NL"},
    ],
    ids=str,
)
@pytest.mark.parametrize("name", ["mixture of five"])
def test_options_have_llama_quantizes_meaning(
    make_graph: Any, write_quant: Any, tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    graph = make_graph(MODELS[name])
    original = write_quant(graph, "BF16").path
    theirs = {key: ggml_types()[value.upper()] if isinstance(value, str) else value for key, value in options.items()}
    for quant in ("Q4_K_M", "Q4_0", "F16"):
        expected = quantized(original, quant, tmp_path / "theirs.gguf", **theirs)
        if quant not in FLOATS:
            assert filecmp.cmp(write_quant(graph, quant, **options).path, expected, shallow=False), quant
