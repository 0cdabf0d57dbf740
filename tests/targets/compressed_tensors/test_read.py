"""Folders read back, of ours and as llm-compressor lays them out, and what of damaged ones is told."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import TensorView
from lfm_convert.targets.compressed_tensors.recognise import listed, recognise
from lfm_convert.targets.target import Artifact, NotJudged, get_target
from support.artifacts import write_artifact
from support.refusals import refused

TARGET = get_target("compressed-tensors")
CLASSES = {
    "W4A16": "q4", "W8A16": "q8", "W8A8": "q8", "FP8": "q5", "FP8_BLOCK": "q5", "NVFP4A16": "q4", "MXFP4": "q4",
    "MXFP4A16": "q4",
}  # fmt: skip
_ERRORS = {"q8": 0.015, "q5": 0.04, "q4": 0.16}


@pytest.mark.parametrize("quant", [policy.name for policy in TARGET.policies])
@pytest.mark.parametrize("model", ["dense", "moe", "lfm3"])
def test_every_quant_is_recognised_and_read(quant: str, model: str, tmp_path: Path) -> None:
    graph = open_graph(bundled.path(model))
    artifact = write_artifact(graph, TARGET, quant, tmp_path)
    (found,) = recognise(artifact.path.parent)
    class_name = CLASSES[quant.split("-")[0]]
    assert (found.quant, found.is_recognised, found.path) == (quant, True, artifact.path)
    assert found.class_name == class_name
    weights = TARGET.read(found)
    for weight in graph.weights():
        values, stored = weight.view.read(), weights[weight.address].read().reshape(weight.shape)
        error = np.linalg.norm(stored - values) / np.linalg.norm(values)
        assert error <= _ERRORS[class_name], (weight.address, error)
    sizes = {each.name: each.nbytes for each in listed(found)}
    assert sum(sizes.values()) == sum(t.nbytes for t in TARGET.plan(graph, quant).tensors)


def test_rows_of_part_of_a_matrix_are_those_of_the_whole(tmp_path: Path) -> None:
    """Whatever tiles they lie in."""
    graph = open_graph(bundled.path("moe"))
    for quant in ("W4A16-asym", "FP8_BLOCK", "NVFP4A16"):
        weights = TARGET.read(write_artifact(graph, TARGET, quant, tmp_path / quant))
        for address in ((Role.EXPERT_DOWN, 2), (Role.ATTN_K, 1)):
            view, whole = weights[address], weights[address].rows(0, weights[address].n_rows)
            for start, stop in ((0, 1), (5, 19), (127, 130), (0, view.n_rows)):
                if stop <= view.n_rows:
                    np.testing.assert_array_equal(view.rows(start, stop), whole[start:stop])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_artifact(open_graph(bundled.path("moe")), TARGET, "W4A16", tmp_path).path.parent


def _edited(folder: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    """The folder with other arrays, written by safetensors itself, in its own order."""
    from safetensors.torch import load_file, save_file

    arrays = load_file(folder / "model.safetensors")
    change(arrays)
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})


def _values(weights: dict[tuple[Role, int | None], TensorView]) -> dict[tuple[Role, int | None], np.ndarray]:
    return {address: view.read() for address, view in weights.items()}


def test_another_order_of_arrays_is_read(folder: Path) -> None:
    """Experts of other writers do not lie end to end."""
    (found,) = recognise(folder)
    before = _values(TARGET.read(found))
    _edited(folder, lambda arrays: None)
    after = _values(TARGET.read(found))
    assert all(np.array_equal(values, after[address]) for address, values in before.items())


def test_every_name_of_it_will_do(folder: Path) -> None:
    for path in (folder, folder / "config.json", folder / "model.safetensors", folder.parent):
        (found,) = recognise(path)
        assert found.path == folder / "config.json"
    assert recognise(folder / "tokenizer.json") == ()
    assert recognise(bundled.path("moe")) == ()


def test_faults_are_told_together(folder: Path) -> None:
    name = "model.layers.2.feed_forward.experts.3.w1"

    def change(arrays: dict[str, np.ndarray]) -> None:
        del arrays[f"{name}.weight_scale"]
        arrays["model.layers.0.conv.in_proj.weight_scale"] = arrays["model.layers.0.conv.in_proj.weight_scale"][
            :-1
        ].clone()
        arrays["model.layers.0.conv.out_proj.weight_shape"][0] = 7
        arrays["surplus"] = arrays["model.embedding_norm.weight"].clone()

    _edited(folder, change)
    with refused(f"'{name}.weight_scale' is missing", "expected BF16", "does not say", "'surplus' is not part"):
        TARGET.read(_artifact(folder))


def _artifact(folder: Path) -> Artifact:
    return Artifact(folder / "config.json", folder, TARGET.name, "W4A16", "q4", (), is_recognised=True)


def test_a_scale_for_a_whole_matrix_is_not_judged(folder: Path) -> None:
    """As llm-compressor's static FP8 has it."""
    import torch

    module = "model.layers.1.self_attn.out_proj"

    def change(arrays: dict) -> None:
        for part in ("weight_packed", "weight_shape"):
            del arrays[f"{module}.{part}"]
        arrays[f"{module}.weight"] = torch.zeros(256, 256).to(torch.float8_e4m3fn)
        arrays[f"{module}.weight_scale"] = torch.ones(1, dtype=torch.bfloat16)
        arrays[f"{module}.input_scale"] = torch.ones(1)

    _edited(folder, change)
    with pytest.raises(NotJudged, match="1 weights are stored as is not decoded here") as caught:
        TARGET.read(_artifact(folder))
    assert (Role.ATTN_OUT, 1) not in caught.value.decoded and (Role.ATTN_OUT, 3) in caught.value.decoded
    assert recognise(folder)[0].quant == "W4A16"


def test_another_method_is_none_of_ours(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["quant_method"] = "gptq"
    (folder / "config.json").write_text(json.dumps(config))
    assert recognise(folder) == ()
