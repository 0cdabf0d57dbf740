"""`--et-backend`: other delegates are lowered to on Linux, and said not to be run here."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
from lfm_convert.graph.blocks import Attention
from lfm_convert.graph.errors import BackendError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.executorch.backends import BACKENDS
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact, get_target

TARGET = get_target("executorch")
# As the runtime registers them.
IDS = {"coreml": "CoreMLBackend", "vulkan": "VulkanBackend"}


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize("backend", IDS)
@pytest.mark.parametrize("quant", ["fp32", "8da4w"])
def test_every_region_is_lowered(backend: str, quant: str, dense_graph: WeightGraph, tmp_path: Path) -> None:
    pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')
    from lfm_convert.targets.executorch.reader import read_program

    target = TARGET.with_options({"et_backend": backend, "context": 64})
    plan = target.plan(dense_graph, quant)
    target.write(plan, dense_graph, tmp_path, Execution())
    (method,) = (
        each for each in read_program(tmp_path / plan.main_file).content.execution_plan if each.name == "forward"
    )
    config = dense_graph.config
    n_attention = len(config.of_kind(Attention))
    # conv_in, conv_out, dense; attention_in, rotate, attention_out, dense; head
    n_regions = 3 * (config.n_layers - n_attention) + 4 * n_attention + 1
    assert [delegate.id for delegate in method.delegates] == [IDS[backend]] * n_regions


@pytest.mark.parametrize("backend", IDS)
def test_not_run_here(backend: str, dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Reading its weights and running it are refused alike, so that the validator says skipped."""
    plan = TARGET.with_options({"et_backend": backend}).plan(dense_graph, "8da4w")
    assert plan.main_file.endswith(f"-8da4w-{backend}.pte")
    assert any(f"{BACKENDS[backend].title} computes" in note for note in plan.notes)
    path = tmp_path / plan.main_file
    options = {"options": {"et_backend": backend}}
    artifact = Artifact(path, tmp_path, TARGET.name, plan.quant, plan.class_name, (path,), options)
    for use in (TARGET.read, lambda found: TARGET.run(found, threads=1)):
        with pytest.raises(BackendError, match=f"not run here: {BACKENDS[backend].title} runs on"):
            use(artifact)


def test_core_ml_needs_its_tools(dense_graph: WeightGraph, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "coremltools" else found(name, *rest)
    )
    target = TARGET.with_options({"et_backend": "coreml"})
    with pytest.raises(BackendError, match=r"coreml needs the package 'coremltools'.*pip install coremltools"):
        target.write(target.plan(dense_graph, "fp32"), dense_graph, tmp_path, Execution())


def test_refusals(dense_graph: WeightGraph) -> None:
    with pytest.raises(UsageError, match="--et-backend is 'qnn': expected one of xnnpack, coreml, vulkan"):
        TARGET.with_options({"et_backend": "qnn"}).plan(dense_graph, "fp32")
    with pytest.raises(UsageError, match="Core ML keeps its weights inside the program"):
        TARGET.with_options({"et_backend": "coreml", "external_weights": True}).plan(dense_graph, "fp32")
