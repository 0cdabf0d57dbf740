"""`--et-moe moe_ffn` and `--external-weights`: the same model from one operator a layer, and from two files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import BackendError, InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import EXPERTS
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import get_target
from support.checkpoints import make_checkpoint, moe_config
from support.prompts import PROMPT

from .conftest import Exported, export
from .int8_forward import FloatExperts, Int8Activations

TARGET = get_target("executorch")
FUSED: dict[str, Any] = {"et_moe": "moe_ffn", "external_weights": True}
# In the default set one export has all that is new; the others say little more.
OPTIONS = [
    FUSED,
    pytest.param({"et_moe": "moe_ffn"}, marks=pytest.mark.slow),
    pytest.param({"external_weights": True}, marks=pytest.mark.slow),
]


@pytest.mark.peers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_runs_its_own_weights(options: dict[str, Any], exported: Callable[..., Exported]) -> None:
    """Against the forward with the artifact's decoded weights and int8 activations."""
    found = exported("moe", "8da4w", **options)
    ids = found.graph.tokenizer.encode("The weather in the town was better than the year before. What do you think?")
    logits = found.target.run(found.artifact, threads=1).logits(ids)
    forward = FloatExperts if "et_moe" in options else Int8Activations
    expected = forward(found.decoded()).prefill([ids])[0][0]
    cosines = (logits * expected).sum(axis=1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    assert cosines.min() >= 0.9999
    second, first = np.sort(expected, axis=1)[:, -2:].T
    is_clear = first - second > 0.1
    np.testing.assert_array_equal(logits.argmax(axis=1)[is_clear], expected.argmax(axis=1)[is_clear])


@pytest.mark.peers
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_conversation_leaves_nothing_behind(options: dict[str, Any], exported: Callable[..., Exported]) -> None:
    found = exported("moe", "8da4w", **options)
    runner = found.target.run(found.artifact, threads=1)
    once = runner.logits(PROMPT)
    runner.logits(PROMPT[::-1])
    np.testing.assert_array_equal(runner.logits(PROMPT), once)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_sizes_are_predicted(options: dict[str, Any], exported: Callable[..., Exported]) -> None:
    found = exported("moe", "8da4w", **options)
    planned = found.target.plan(found.graph, "8da4w").files
    assert [file.path for file in planned] == [path.name for path in found.artifact.files]
    assert len(planned) == (2 if "external_weights" in options else 1)
    for file, path in zip(planned, found.artifact.files, strict=True):
        assert file.nbytes == pytest.approx(path.stat().st_size, rel=0.01)


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(
    "fields", [{"routed_scaling_factor": 2.5}, {"norm_topk_prob": False}, {"use_expert_bias": False}]
)
def test_variants_of_routing(fields: dict[str, Any], tmp_path: Path) -> None:
    """What the operator does not know of LFM2's routing is made up for outside of it."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", moe_config(**fields)))
    found = export(graph, "8da4w", tmp_path / "out", et_moe="moe_ffn")
    expected = FloatExperts(found.decoded()).prefill([PROMPT])[0][0]
    logits = found.target.run(found.artifact, threads=1).logits(PROMPT)
    assert np.linalg.norm(logits - expected) < 0.02 * np.linalg.norm(expected)


def test_both_forms_store_the_same_but_for_scales(exported: Callable[..., Exported]) -> None:
    """Scales of experts are bfloat16 in one form and float32 in the other; all else is bit for bit the same."""
    fused, plain = (found.decoded() for found in (exported("moe", "8da4w", **FUSED), exported("moe", "8da4w")))
    for one, other in zip(fused.weights(), plain.weights(), strict=True):
        if one.role not in EXPERTS:
            np.testing.assert_array_equal(one.view.read(), other.view.read())
        else:
            difference = one.view.read() - other.view.read()
            assert np.linalg.norm(difference) < 0.05 * np.linalg.norm(other.view.read())


def test_rows_of_a_tile_are_read_one_by_one(exported: Callable[..., Exported]) -> None:
    gate = next(w.view for w in exported("moe", "8da4w", **FUSED).decoded().weights() if w.role in EXPERTS)
    np.testing.assert_array_equal(gate.rows(3, 21), gate.rows(0, gate.n_rows)[3:21])


def test_a_program_without_its_weights(exported: Callable[..., Exported], tmp_path: Path) -> None:
    found = exported("moe", "8da4w", **FUSED)
    program, data = found.artifact.files
    with pytest.raises(InputError, match=r"does not load it|weights"):
        found.target.run(replace(found.artifact, files=(program,)), threads=1)
    cut = tmp_path / data.name
    cut.write_bytes(data.read_bytes()[:-4096])
    for use in (found.target.read, lambda artifact: found.target.run(artifact, threads=1)):
        with pytest.raises(InputError, match=r"segment \d+ ends at byte \d+, the file at \d+"):
            use(replace(found.artifact, files=(program, cut)))
        cut.write_bytes(b"\xff" * 1000)
        with pytest.raises(InputError, match=r"not a \.ptd file"):
            use(replace(found.artifact, files=(program, cut)))
        cut.write_bytes(data.read_bytes()[:-4096])


def test_a_runtime_without_the_operator(exported: Callable[..., Exported], monkeypatch: pytest.MonkeyPatch) -> None:
    found = exported("moe", "8da4w", **FUSED)
    from lfm_convert.targets.executorch import runner

    registry = runner.Runtime.get().operator_registry
    names = {name for name in registry.operator_names if "quantized_moe_ffn" not in name}
    monkeypatch.setattr(type(registry), "operator_names", property(lambda self: names))
    with pytest.raises(BackendError, match=r"quantized_moe_ffn \(executorch 1.5 and newer\).* pip install") as caught:
        found.target.run(found.artifact, threads=1)
    assert caught.value.exit_code == 6


def test_an_executorch_without_the_operator(
    moe_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    target = TARGET.with_options(FUSED)
    monkeypatch.setattr("lfm_convert.targets.executorch.target.version", lambda name: "1.4.1+cpu")
    with pytest.raises(BackendError, match=r"is in executorch 1.5 and newer, 1.4.1\+cpu is installed: pip install"):
        target.write(target.plan(moe_graph, "8da4w"), moe_graph, tmp_path, Execution())


@pytest.mark.parametrize(
    ("form", "quant", "config", "sentence"),
    [
        ("loop", "8da4w", {}, "--et-moe is 'loop': expected one of experts, moe_ffn"),
        ("moe_ffn", "fp32", {}, "takes experts of 4 bits.* fp32 stores these, of 128 and 64 columns, as F32"),
        ("moe_ffn", "8da8w", {}, "as et_int8"),
        ("moe_ffn", "8da4w", {"moe_intermediate_size": 48}, "as et_int4_g32, et_int8"),
        ("moe_ffn", "8da4w-g128", {}, "as et_int4_g128, et_int4_g64"),
    ],
)
def test_refused_forms(form: str, quant: str, config: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, moe_config(**config)))
    with pytest.raises(UsageError, match=sentence):
        TARGET.with_options({"et_moe": form}).plan(graph, quant)


def test_no_experts(dense_graph: WeightGraph) -> None:
    with pytest.raises(UsageError, match="a dense model has no experts"):
        TARGET.with_options({"et_moe": "moe_ffn"}).plan(dense_graph, "8da4w")


def test_plan_says_what_an_app_needs(moe_graph: WeightGraph) -> None:
    plan = TARGET.with_options(FUSED).plan(moe_graph, "8da4w")
    assert any("executorch 1.5 or newer: its custom_ops have llama::quantized_moe_ffn" in note for note in plan.notes)
