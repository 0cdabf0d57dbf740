"""Importance of zero, of another model, or of only some tensors; and no place on a disk in what is written."""

from __future__ import annotations

import ctypes
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.encoding import get_encoding, ggml_types
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.imatrix import importance_bytes, read_importance

GGUF = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "IQ4_NL", "IQ4_XS")
OTHERS = (
    "int4_block32_f16",
    "int8_block32_f32",
    "affine4_g64_bf16_refined",
    "mxfp4_bf16_refined",
    "nvfp4_bf16_refined",
)
# Target, options with which it weighs columns.
WEIGHING = [("gguf", ["-q", "Q4_0"]), ("onnx", ["-q", "q4"]), ("mlx", ["-q", "4bit", "--refine"])]


def matrix(path: Path, uses: Mapping[str, Use]) -> Path:
    path.write_bytes(importance_bytes(uses, datasets=("/home/a/b.txt",), n_chunks=3, chunk_size=512))
    return path


def uses_of(graph: WeightGraph, fill: float) -> dict[str, Use]:
    """Sums of one value for every matrix of the layers, each column hit twice."""
    shapes = {tensor_name((w.role, w.layer)): w.shape for w in graph.weights() if w.layer is not None}
    return {
        name: Use(
            np.full((shape[0] if len(shape) == 3 else 1, shape[-1]), fill, np.float32),
            np.full(shape[0] if len(shape) == 3 else 1, 2, np.float32),
        )
        for name, shape in shapes.items()
        if len(shape) > 1 and "conv.conv" not in name
    }


def cases() -> dict[str, Float32]:
    rng = np.random.default_rng(5)
    usual = (rng.random(512) ** 4 * 50).astype(np.float32)
    block, run, half_run = usual.copy(), usual.copy(), usual.copy()
    block[:256], run[64:96], half_run[64:80] = 0, 0, 0
    single = np.zeros(512, np.float32)
    single[5] = 1
    return {
        "all": np.zeros(512, np.float32),
        "a block": block,
        "a run": run,
        "half a run": half_run,
        "a third": np.where(rng.random(512) < 0.3, np.float32(0), usual),
        "nearly all": np.where(rng.random(512) < 0.9, np.float32(0), usual),
        "all but one": single,
    }


CASES = cases()
ROWS = (np.random.default_rng(6).normal(size=(6, 512)) * 0.05).astype(np.float32)


@pytest.mark.parametrize("name", [*GGUF, *(f"{name}_refined" for name in GGUF), *OTHERS])
@pytest.mark.parametrize("case", CASES)
def test_zeros_lose_no_weights(name: str, case: str) -> None:
    encoding = get_encoding(name)
    values = encoding.decode(*encoding.encode(ROWS, CASES[case]))
    runs = (len(ROWS), -1, 16 if name[:4] in ("Q2_K", "Q3_K", "Q6_K") else 32)
    off = np.square(values - ROWS).reshape(runs).sum(axis=-1) / np.square(ROWS).reshape(runs).sum(axis=-1)
    assert off.max() < 0.8, "a run of weights became zeros"


@pytest.mark.peers
@pytest.mark.parametrize("name", GGUF)
def test_bytes_are_ggmls_where_ggml_loses_nothing(name: str) -> None:
    pytest.importorskip("xllamacpp")
    encoding, n_equal = get_encoding(name), 0
    for case, importance in CASES.items():
        (ours,) = encoding.encode(ROWS, importance)
        theirs = _ggml(name, importance)
        off = np.square(encoding.decode(theirs) - ROWS).reshape(len(ROWS), -1, encoding.run).sum(axis=-1)
        kept = (off <= 0.7 * np.square(ROWS).reshape((*off.shape, -1)).sum(axis=-1)).all(axis=1)
        assert np.array_equal(ours[kept], theirs[kept]), case
        n_equal += int(kept.sum())
    assert n_equal >= 6


def _ggml(name: str, importance: Float32) -> np.ndarray:
    from lfm_convert.targets.gguf.runner import load_library

    out = np.zeros((len(ROWS), get_encoding(name).row_nbytes(ROWS.shape[1])), np.uint8)
    quantize = load_library().ggml_quantize_chunk
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = (ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p)
    quantize(ggml_types()[name], ROWS.ctypes.data, out.ctypes.data, 0, *ROWS.shape, importance.ctypes.data)
    return out


def test_rows_do_not_depend_on_their_neighbours() -> None:
    encoding = get_encoding("Q6_K")
    (whole,) = encoding.encode(ROWS, CASES["nearly all"])
    for i, row in enumerate(whole):
        assert np.array_equal(encoding.encode(ROWS[i : i + 1], CASES["nearly all"])[0][0], row)


def test_sums_of_zero_count_as_never_hit(moe_graph: WeightGraph, tmp_path: Path) -> None:
    """The file of a whole matrix of zeros is the file of one of ones."""
    found = read_importance(matrix(tmp_path / "zeros.gguf", uses_of(moe_graph, 0.0)))
    for weight in moe_graph.weights():
        columns = found.of_weight((weight.role, weight.layer), weight.shape)
        assert columns is None or (columns == 1).all()


@pytest.mark.parametrize("quant", ["Q4_0", "Q4_K_M"])
def test_an_artifact_of_sums_of_zero_runs(
    quant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], bundled_dense: WeightGraph
) -> None:
    path = matrix(tmp_path / "zeros.gguf", uses_of(bundled_dense, 0.0))
    out = tmp_path / "out"
    code = main(["bundled:dense", "-t", "gguf", "-q", quant, "--imatrix", str(path), "--out", str(out), "--json", "-"])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    (row,) = json.loads(captured.out)["validation"]["artifacts"]
    assert row["verdict"] == "pass" and row["metrics"]["kld_mean"] < 0.1
    assert "no token reached blk.0.ffn_up.weight: all columns count the same" in captured.err


@pytest.fixture(scope="module")
def bundled_dense() -> WeightGraph:
    return pipeline.open_model("bundled:dense")


@pytest.mark.parametrize(("target", "options"), WEIGHING)
@pytest.mark.parametrize("names", [["blk.99.ffn_up.weight"], []])
def test_a_matrix_of_another_model_is_refused(
    target: str,
    options: list[str],
    names: list[str],
    tiny_moe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = matrix(tmp_path / "i.gguf", dict.fromkeys(names, Use(np.ones((1, 8), np.float32), np.ones(1, np.float32))))
    out = tmp_path / "out"
    assert main([str(tiny_moe), "-t", target, *options, "--imatrix", str(path), "--out", str(out)]) == 5
    said = capsys.readouterr().err
    assert f"{path}: has no importance of any tensor of this model" in said
    assert ("'blk.99.ffn_up.weight'" if names else "it is empty") in said
    assert not out.exists()


@pytest.mark.parametrize(("target", "options"), WEIGHING)
def test_what_a_matrix_lacks_is_said_and_no_place_is_kept(
    target: str,
    options: list[str],
    moe_graph: WeightGraph,
    tiny_moe: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uses = uses_of(moe_graph, 2.0)
    del uses["blk.0.ffn_up.weight"]
    path, out = matrix(tmp_path / "i.gguf", uses), tmp_path / "out"
    arguments = [str(tiny_moe), "-t", target, *options, "--imatrix", str(path), "--out", str(out), "--no-validate"]
    assert main(arguments) == 0
    said = capsys.readouterr().err
    assert "i.gguf has no importance of " in said
    assert ("blk.0.ffn_up.weight" if target == "gguf" else "layers.0.feed_forward") in said
    for file in out.rglob("*"):
        if file.is_file():
            assert str(tmp_path).encode() not in file.read_bytes(), file
            assert b"/home/a" not in file.read_bytes(), file
    manifest = (out / "lfm-convert.json").read_text()
    assert "i.gguf has no importance of " in manifest
    if target == "gguf":
        metadata = read_gguf(next(out.glob("*.gguf"))).metadata
        assert (metadata["quantize.imatrix.file"], metadata["quantize.imatrix.dataset"]) == ("i.gguf", "b.txt")


def test_calibrate_keeps_names_of_texts(tiny_dense: Path, tmp_path: Path) -> None:
    text, out = tmp_path / "text.txt", tmp_path / "i.gguf"
    text.write_text("The harbour wakes before the town does. " * 20)
    assert main(["calibrate", str(tiny_dense), "--text", str(text), "-o", str(out)]) == 0
    assert read_importance(out).datasets == ("text.txt",)


def test_a_runtimes_complaint_in_a_manifest_names_no_folder(tiny_dense: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = pipeline.convert(str(tiny_dense), target="gguf", quant="Q8_0", out=out)
    assert done.report is not None
    broken = [replace(result, message=f"{result.artifact.path}: no kernel") for result in done.report.results]
    pipeline.record(replace(done.report, results=tuple(broken)))
    (entry,) = json.loads((out / "lfm-convert.json").read_text())["artifacts"]
    assert entry["validation"]["message"] == f"{entry['main_file']}: no kernel"
