"""The plan, the methods an app asks for, and a sentence for every input that cannot be served."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.errors import InputError, UsageError
from lfm_convert.convert.model.graph import Role, WeightGraph
from lfm_convert.convert.model.lfm2 import open_graph
from lfm_convert.convert.stream import Execution
from lfm_convert.quantize.policies.executorch import MATRICES
from lfm_convert.targets.target import Artifact, get_target
from support.checkpoints import dense_config, make_checkpoint
from support.memory import peak_bytes

from .conftest import CONTEXT, Exported, export

TARGET = get_target("executorch")


@pytest.mark.parametrize(("kind", "quant"), [("dense", "fp32"), ("moe", "8da4w")])
def test_size_is_predicted(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    found = exported(kind, quant)
    assert found.predicted_bytes == pytest.approx(found.artifact.size_bytes, rel=0.01)
    assert not list(found.artifact.folder.glob("*.weights"))


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


@pytest.mark.parametrize("context", [1, 4097])
def test_context_beyond_the_model(dense_graph: WeightGraph, context: int) -> None:
    graph = replace(dense_graph, config=replace(dense_graph.config, context_length=4096))
    with pytest.raises(UsageError, match=rf"--context {context}: expected 2 to 4096"):
        TARGET.with_options({"context": context}).plan(graph, "fp32")


def test_rows_that_groups_do_not_divide(tmp_path: Path) -> None:
    config = dense_config(hidden_size=144, num_attention_heads=4, num_key_value_heads=2)
    plan = TARGET.plan(open_graph(make_checkpoint(tmp_path, config)), "8da4w")
    assert {f.used for f in plan.fallbacks} == {"et_int8", "et_embed8"}
    with pytest.raises(UsageError, match="rows of 144 are not a multiple of the block of 32"):
        plan.refuse_fallbacks()


def test_smaller_groups_where_larger_do_not_divide(tmp_path: Path) -> None:
    """Rows of 192 come in groups of 64, those of 256 as asked."""
    graph = open_graph(make_checkpoint(tmp_path, dense_config(hidden_size=192, num_attention_heads=4)))
    plan = TARGET.plan(graph, "8da4w-g128")
    used = {tensor.shape[-1]: tensor.encoding.name for tensor in plan.tensors if tensor.role in MATRICES}
    assert used == {192: "et_int4_g64", 256: "et_int4_g128"}
    assert {(f.wanted, f.used) for f in plan.fallbacks} == {("et_int4_g128", "et_int4_g64")}
    with pytest.raises(UsageError, match=r"as et_int4_g64 instead of et_int4_g128 .rows of 192 are not a multiple"):
        plan.refuse_fallbacks()


@pytest.mark.parametrize(("quant", "bits"), [("8da4w", 4.5), ("8da4w-g64", 4.25), ("8da4w-g128-emb8", 4.125)])
def test_bits_of_a_weight(quant: str, bits: float, dense_graph: WeightGraph) -> None:
    matrices = [tensor for tensor in TARGET.plan(dense_graph, quant).tensors if tensor.role in MATRICES]
    assert {8 * tensor.nbytes / math.prod(tensor.shape) for tensor in matrices} == {bits}


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
@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-1.2b", "lfm2.5-2.6b"])
def test_size_of_real_widths(name: str, published_configs: Path, tmp_path: Path) -> None:
    """Two layers of every dense width: what the plan says, from the config alone, is the size within 1 %."""
    config = json.loads((published_configs / f"{name}.json").read_bytes())
    config = {key: value for key, value in config.items() if key != "layer_types"}
    graph = open_graph(make_checkpoint(tmp_path / name, {**config, "num_hidden_layers": 2, "full_attn_idxs": [1]}))
    found = export(graph, "8da4w", tmp_path / "out")
    assert found.predicted_bytes == pytest.approx(found.artifact.size_bytes, rel=0.01)


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
