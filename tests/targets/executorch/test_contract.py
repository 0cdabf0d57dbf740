"""The plan, the methods an app asks for, and a sentence for every input that cannot be served."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.blocks import Attention, Rope, ShortConv
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.policies.executorch import GRAMMAR
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, get_target
from support.checkpoints import make_checkpoint
from support.memory import peak_bytes
from support.refusals import refused

from .conftest import CONTEXT, Exported

TARGET = get_target("executorch")


def test_methods_an_app_asks_for(exported: Callable[..., Exported]) -> None:
    from executorch.runtime import Runtime

    program = Runtime.get().load_program(exported("dense", "fp32").artifact.path)
    found = {name: program.load_method(name).execute(()) for name in program.method_names - {"forward"}}
    assert found == {
        "get_max_seq_len": [CONTEXT], "get_max_context_len": [CONTEXT], "get_vocab_size": [1024], "get_n_layers": [5],
        "use_kv_cache": [True], "use_sdpa_with_kv_cache": [True], "enable_dynamic_shape": [True],
        "get_bos_id": [1], "get_eos_ids": [7],
    }  # fmt: skip


def test_float_weights_come_back(exported: Callable[..., Exported]) -> None:
    found = exported("dense", "fp32")
    weights = found.target.read(found.artifact)
    assert set(weights) == {(w.role, w.layer) for w in found.graph.weights()} | {(Role.LM_HEAD, None)}
    for weight in found.graph.weights():
        np.testing.assert_array_equal(weights[weight.role, weight.layer].read(), weight.view.read())


@pytest.mark.parametrize(("name", "n_bytes"), [("lfm2-350m", 237.6e6), ("lfm2-8b-a1b", 4.77e9)])
def test_plan_needs_no_torch(name: str, n_bytes: float, published_configs: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['executorch'] = None\n"
        "from lfm_convert.convert.pipeline import plan\n"
        "print(plan(sys.argv[1], target='executorch', quant='8da4w')[0].total_bytes)"
    )
    (tmp_path / "config.json").write_bytes((published_configs / f"{name}.json").read_bytes())
    printed = subprocess.run([sys.executable, "-P", "-c", code, tmp_path], check=True, capture_output=True).stdout
    assert int(printed) == pytest.approx(n_bytes, rel=0.02)


@pytest.mark.parametrize(
    ("kind", "change", "sentence"),
    [
        (ShortConv, {"is_causal": False}, r"no centred short convolution \(layer 0\): its state would"),
        (Attention, {"is_causal": False}, r"no attention that sees later tokens \(layer 1\)"),
        (Attention, {"rope": Rope(theta=1e4, inverse_frequencies=(1.0,), pairs_neighbours=True)}, "neighbouring pairs"),
    ],
)
def test_blocks_without_an_emitter(kind: type, change: dict[str, Any], sentence: str, dense_graph: WeightGraph) -> None:
    layers = tuple(
        tuple(replace(b, block=replace(b.block, **change)) if isinstance(b.block, kind) else b for b in branches)
        for branches in dense_graph.config.layers
    )
    graph = replace(dense_graph, config=replace(dense_graph.config, layers=layers))
    with pytest.raises(UsageError, match=f"executorch has .*{sentence}"):
        TARGET.plan(graph, "fp32")


def test_a_branch_without_a_norm(dense_graph: WeightGraph) -> None:
    first, *rest = dense_graph.config.layers
    layers = tuple(replace(branch, norm=None) for branch in first), *rest
    graph = replace(dense_graph, config=replace(dense_graph.config, layers=layers))
    with pytest.raises(UsageError, match=r"no short convolution without a norm before it \(layer 0\)"):
        TARGET.plan(graph, "fp32")


@pytest.mark.parametrize("context", [-1, 0, 1, 4097])
def test_context_beyond_the_model(dense_graph: WeightGraph, context: int) -> None:
    graph = replace(dense_graph, config=replace(dense_graph.config, context_length=4096))
    with refused(f"--context {context}: expected 2 to 4096, the model's own length", error=UsageError):
        TARGET.with_options({"context": context}).plan(graph, "fp32")
    for least_or_most in (2, 4096):
        assert (
            f"context {least_or_most};" in TARGET.with_options({"context": least_or_most}).plan(graph, "fp32").notes[0]
        )


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--context", "0"], "--context 0: expected 2 to 262144, the model's own length"),
        (["--context", "262145"], "--context 262145: expected 2 to 262144, the model's own length"),
        (["--quant", "8da4w-g48"], f"unknown quant '8da4w-g48' for target executorch: expected {GRAMMAR}"),
        (["--et-moe", "moe_ffn"], "--et-moe moe_ffn: a dense model has no experts"),
        (["--external-weights", "--et-backend", "vulkan"], "--external-weights: Vulkan keeps its weights inside the program"),
        (["--refine"], "target executorch has no option --refine"),
    ],
)  # fmt: skip
def test_requests_that_cannot_be_served(
    arguments: list[str], sentence: str, published_configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of LFM3-1.7B: exit code 2 and one sentence, from the config alone."""
    (tmp_path / "config.json").write_bytes((published_configs / "lfm3-1.7b.json").read_bytes())
    assert main(["plan", str(tmp_path), "--target", "executorch", *arguments]) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.splitlines()[-1]) == ("", f"lfm-convert: {sentence}")


def test_quantized_weights_come_back(exported: Callable[..., Exported]) -> None:
    """The file holds exactly what the encoders chose: every stored tensor decodes to their values."""
    found = exported("moe", "8da4w")
    weights = found.target.read(found.artifact)
    for tensor in found.target.plan(found.graph, "8da4w").tensors:
        rows = tensor.view.rows(0, tensor.view.n_rows)
        expected = tensor.encoding.decode(*tensor.encoding.encode(rows))
        read = weights[tensor.role, tensor.layer].read()
        np.testing.assert_array_equal(read.reshape(expected.shape), expected, err_msg=tensor.name)


@pytest.mark.slow
@pytest.mark.parametrize("quant", ["8da4w", "fp32"])
def test_peak_memory_is_planned(quant: str, published_configs: Path, tmp_path: Path) -> None:
    """Two layers of LFM2-350M, whose head is the largest matrix: what the plan says is above the peak, not far."""
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    config = json.loads((published_configs / "lfm2-350m.json").read_bytes())
    config = {key: value for key, value in config.items() if key != "layer_types"}
    folder = make_checkpoint(tmp_path / "model", {**config, "num_hidden_layers": 2, "full_attn_idxs": [1]})
    options = ["--target", "executorch", "--quant", quant, "--out", tmp_path / "out", "--no-validate", "--jobs", "1"]
    peak = peak_bytes(tmp_path, [folder, *options])
    planned = TARGET.plan(open_graph(folder), quant).peak_memory_bytes()
    assert 0.6 * planned < peak < planned


def test_tokenizer_the_runner_cannot_read(tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    folder = make_checkpoint(tmp_path / "checkpoint")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    path.write_text(json.dumps({**tokenizer, "pre_tokenizer": {"type": "NoSuchSplit"}}))
    graph = open_graph(folder)
    with pytest.raises(
        InputError, match=r"LLM runner does not read it: .* does not know its pre_tokenizer 'NoSuchSplit'"
    ):
        TARGET.write(TARGET.plan(graph, "fp32"), graph, tmp_path, Execution())


def test_truncated_file(exported: Callable[..., Exported], tmp_path: Path) -> None:
    found = exported("dense", "fp32")
    broken = _copy(found.artifact, tmp_path, found.artifact.path.read_bytes()[:-4096])
    for use in (found.target.read, lambda artifact: found.target.run(artifact, threads=1)):
        with pytest.raises(InputError, match=r"segment \d+ ends at byte \d+, the file at \d+"):
            use(broken)


def test_not_a_pte(exported: Callable[..., Exported], tmp_path: Path) -> None:
    found = exported("dense", "fp32")
    with pytest.raises(InputError, match=r"not a \.pte file"):
        found.target.run(_copy(found.artifact, tmp_path, b"\xff" * 1000), threads=1)


def _copy(artifact: Artifact, folder: Path, data: bytes) -> Artifact:
    path = folder / artifact.path.name
    path.write_bytes(data)
    (folder / "config.json").write_bytes((artifact.folder / "config.json").read_bytes())
    return replace(artifact, path=path, folder=folder, files=(path,))
