"""The runner's two engines by one interface: the evaluator here, Apple's runtime as a stub of its API."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.coreml.evaluator.machine import Evaluator
from lfm_convert.targets.coreml.library import messages
from lfm_convert.targets.coreml.runner import CoremlRunner
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact

CHUNK, CONTEXT = 8, 40
IDS = [int(i) for i in np.random.default_rng(1).integers(3, 500, 21)]


def written(graph: WeightGraph, folder: Path, **options: Any) -> Path:
    target = get_target("coreml").with_options({"chunk": CHUNK, "context": CONTEXT, **options})
    return write_artifact(graph, target, "fp16", folder).path.parent


@pytest.fixture(scope="module")
def package(dense_graph: WeightGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(dense_graph, tmp_path_factory.mktemp("coreml"))


def stepwise(runner: CoremlRunner, ids: list[int]) -> np.ndarray:
    runner.reset()
    return np.concatenate([runner.extend([token]) for token in ids])


def test_chunks_steps_and_other_conversations_agree_with_the_checkpoint(
    package: Path, dense_graph: WeightGraph
) -> None:
    runner = CoremlRunner(package, threads=1)
    assert runner.backend.startswith("MIL evaluator, float32, coremltools ")
    (expected,), _ = Forward(dense_graph).prefill([IDS])
    chunks = runner.logits(IDS)  # two whole chunks, and one padded
    np.testing.assert_allclose(chunks, expected, atol=0.01)
    np.testing.assert_allclose(stepwise(runner, IDS), expected, atol=0.01)
    other = runner.another()
    other.extend(IDS[:3])
    np.testing.assert_allclose(runner.logits(IDS), chunks, atol=1e-6)
    np.testing.assert_allclose(np.concatenate([other.extend(IDS[3:4]), other.extend(IDS[4:])]), expected[3:], atol=0.01)


@pytest.mark.parametrize("name", ["decode", "prefill"])
def test_both_functions_are_called(package: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    calls: list[tuple[str, int]] = []
    run = Evaluator.run

    def counted(self: Evaluator, function: str, inputs: Any, *rest: Any, **more: Any) -> Any:
        calls.append((function, int(inputs.get("n_tokens", [1])[0])))
        return run(self, function, inputs, *rest, **more)

    monkeypatch.setattr(Evaluator, "run", counted)
    runner = CoremlRunner(package, threads=1)
    if name == "decode":
        stepwise(runner, IDS[:3])
        assert calls == [("decode", 1)] * 3
    else:
        runner.logits(IDS)
        assert calls == [("prefill", 8), ("prefill", 8), ("prefill", 5)]


def test_float16_is_close_to_float32(package: Path) -> None:
    single, half = (CoremlRunner(package, threads=1, precision=each) for each in ("float32", "float16"))
    assert half.backend.startswith("MIL evaluator, float16")
    found, rounded = single.logits(IDS), half.logits(IDS)
    assert 0 < np.abs(found - rounded).max() < 0.05


def test_all_states_need_no_inputs_in_their_place(dense_graph: WeightGraph, package: Path, tmp_path: Path) -> None:
    runner = CoremlRunner(written(dense_graph, tmp_path, coreml_state="all"), threads=1)
    np.testing.assert_allclose(runner.logits(IDS), CoremlRunner(package, threads=1).logits(IDS), atol=1e-6)
    before = runner.logits(IDS[:4])
    np.testing.assert_array_equal(runner.logits(IDS[:4]), before)


def test_what_a_package_has_no_room_for_is_refused(package: Path) -> None:
    runner = CoremlRunner(package, threads=1)
    runner.extend([5] * CONTEXT)
    with pytest.raises(UsageError, match="41 tokens do not fit the package's context of 40"):
        runner.extend([5])
    for ids in ([], [-1], [runner.n_vocab]):
        with pytest.raises(UsageError, match="token ids must be"):
            runner.extend(ids)


def test_stops_are_those_of_the_checkpoint(package: Path, dense_graph: WeightGraph) -> None:
    (stops,) = CoremlRunner(package, threads=1).stops().values()
    assert stops == list(dense_graph.stop_ids)


def test_neither_torch_nor_coremltools_is_imported(package: Path) -> None:
    lines = (
        "import sys, pathlib",
        "from lfm_convert.targets.coreml.runner import CoremlRunner",
        "CoremlRunner(pathlib.Path(sys.argv[1]), threads=1).extend([5, 6])",
        "assert not {'torch', 'coremltools', 'sympy'} & set(sys.modules)",
    )
    subprocess.run([sys.executable, "-c", "\n".join(lines), str(package)], check=True)


def test_the_experts_that_were_chosen(moe_graph: WeightGraph, tmp_path: Path) -> None:
    runner = CoremlRunner(written(moe_graph, tmp_path), threads=1)
    runner.extend(IDS[:2])
    found = runner.experts(IDS)
    assert found is not None
    mixtures = {layer.index for layer in moe_graph.layers if any(hasattr(b.block, "n_experts") for b in layer.branches)}
    assert set(found) == mixtures
    assert all(chosen.shape == (len(IDS), 4) and chosen.max() < 8 for chosen in found.values())
    steps = runner.experts(IDS[:1])
    assert steps is not None and all((steps[layer][0] == found[layer][0]).all() for layer in found)


def test_a_dense_model_has_no_experts(package: Path) -> None:
    assert CoremlRunner(package, threads=1).experts(IDS[:2]) is None


# --- Apple's runtime ---


class StubModel:
    """The part of `coremltools.models.MLModel` that is used, on the evaluator; counts what it is asked."""

    made: ClassVar[list[StubModel]] = []
    _framework_error: Exception | None = None

    def __init__(self, path: str, *, function_name: str, compute_units: Any) -> None:
        self.units = compute_units.name
        self.function, self.n_states, self.calls = function_name, 0, 0
        self.evaluator = Evaluator(Path(path))
        StubModel.made.append(self)

    def make_state(self) -> dict[str, np.ndarray]:
        self.n_states += 1
        return self.evaluator.new_states()

    def predict(self, data: dict[str, np.ndarray], state: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        self.calls += 1
        return self.evaluator.run(self.function, data, state)


@pytest.fixture
def on_a_mac(monkeypatch: pytest.MonkeyPatch) -> Callable[[type], None]:
    from support.coreml_packages import ct

    def pretend(model: type) -> None:
        monkeypatch.setattr(ct.models, "MLModel", model)
        monkeypatch.setattr(sys, "platform", "darwin")
        StubModel.made = []

    return pretend


def test_apples_runtime_is_called_as_its_interface_says(package: Path, on_a_mac: Callable[[type], None]) -> None:
    expected = CoremlRunner(package, threads=1).logits(IDS)
    on_a_mac(StubModel)
    runner = CoremlRunner(package, threads=1)
    assert runner.backend.startswith("Core ML, macOS")
    np.testing.assert_array_equal(runner.logits(IDS), expected)
    np.testing.assert_allclose(stepwise(runner, IDS), expected, atol=0.01)
    other = runner.another()
    assert other.extend(IDS[:1]).shape == (1, runner.n_vocab)
    decode, prefill = sorted(StubModel.made, key=lambda model: model.function)
    assert (decode.function, prefill.function) == ("decode", "prefill")
    assert (decode.calls, prefill.calls) == (len(IDS) + 1, 3)
    assert decode.units == prefill.units == "ALL"
    assert decode.n_states + prefill.n_states == 2  # one a conversation, shared by both functions
    assert runner.experts(IDS) is None


def test_several_states_are_kept_from_the_neural_engine(
    dense_graph: WeightGraph, tmp_path: Path, on_a_mac: Callable[[type], None]
) -> None:
    made = written(dense_graph, tmp_path, coreml_state="all")
    on_a_mac(StubModel)
    runner = CoremlRunner(made, threads=1)
    assert "CPU and GPU" in runner.backend
    assert {model.units for model in StubModel.made} == {"CPU_AND_GPU"}
    assert runner.extend(IDS).shape == (len(IDS), runner.n_vocab)


class RefusingModel(StubModel):
    def __init__(self, *arguments: Any, **more: Any) -> None:
        raise RuntimeError("Error compiling model")


class UncompiledModel(StubModel):
    _framework_error = RuntimeError("Error compiling model")


class FailingModel(StubModel):
    def predict(self, data: Any, state: Any) -> Any:
        raise RuntimeError("Unable to compute the prediction")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (RefusingModel, "Core ML refuses it: Error"),
        (UncompiledModel, "Core ML refuses it: Error"),
        (FailingModel, "fails to run 'decode'"),
    ],
)
def test_what_apples_runtime_refuses_is_one_sentence(
    package: Path, on_a_mac: Callable[[type], None], model: type, said: str
) -> None:
    on_a_mac(model)
    with pytest.raises(InputError, match=said):
        CoremlRunner(package, threads=1).extend(IDS[:1])


# --- packages of another interface ---


@dataclasses.dataclass
class Change:
    """What is changed in a package's specification, and what is said of it."""

    apply: Callable[[Any], None]
    said: str


def _renamed_input(spec: Any) -> None:
    """`position` is called otherwise, wherever it is used."""
    for function in spec.mlProgram.functions.values():
        for each in function.inputs:
            each.name = "offset" if each.name == "position" else each.name
        for operation in function.block_specializations["CoreML8"].operations:
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.name == "position":
                        binding.name = "offset"


def _no_prefill(spec: Any) -> None:
    del spec.mlProgram.functions["prefill"]


def _other_states(spec: Any) -> None:
    function = spec.mlProgram.functions["decode"]
    block = function.block_specializations["CoreML8"]
    for each in function.inputs:
        each.name = "cache" if each.name == "kv_cache" else each.name
    for operation in block.operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                binding_name = binding.name
                if binding_name == "kv_cache":
                    binding.name = "cache"


def _other_output(spec: Any) -> None:
    for function in spec.mlProgram.functions.values():
        del function.block_specializations["CoreML8"].outputs[:]
        function.block_specializations["CoreML8"].outputs.append("input_ids")


_CHANGES = {
    "no prefill": Change(_no_prefill, "its functions are decode: expected decode and prefill"),
    "another input": Change(_renamed_input, "decode takes position as nothing: expected int32"),
    "other states": Change(_other_states, "do not share their states"),
    "other outputs": Change(_other_output, "decode takes conv_state_in .* and gives conv_state_out None"),
}


@pytest.mark.parametrize("change", _CHANGES)
def test_packages_of_another_interface_are_refused(package: Path, tmp_path: Path, change: str) -> None:
    copy = shutil.copytree(package, tmp_path / package.name)
    file = copy / "Data/com.apple.CoreML/model.mlmodel"
    spec = messages().Model.FromString(file.read_bytes())
    _CHANGES[change].apply(spec)
    file.write_bytes(spec.SerializeToString())
    with pytest.raises(InputError, match=_CHANGES[change].said):
        CoremlRunner(copy, threads=1)
