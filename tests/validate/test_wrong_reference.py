"""Every artifact that was made from another checkpoint is named, however near that is, with a manifest and without."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled, pipeline
from lfm_convert.validate.gates import Failure
from lfm_convert.validate.results import Verdict
from support.safetensors_files import Tensor, bfloat16, edit_tensors

ARTIFACTS = (("gguf", "Q4_0"), ("onnx", "q4f16"), ("mlx", "4bit"))
MANIFEST = "lfm-convert.json"

pytest.importorskip("mlx_lm")
pytest.importorskip("onnxruntime")


def floats(tensor: Tensor) -> np.ndarray:
    """The values of a stored bfloat16 tensor."""
    assert tensor.dtype == "BF16"
    bits = np.frombuffer(tensor.data, "<u2").astype(np.uint32) << np.uint32(16)
    return bits.view(np.float32).reshape(tensor.shape)


def noise(share: float) -> Callable[[dict[str, Tensor]], None]:
    """Of each weight, relative to its tensor's size: what a short fine-tune does."""

    def change(tensors: dict[str, Tensor]) -> None:
        rng = np.random.default_rng(3)
        for name, tensor in tensors.items():
            values = floats(tensor)
            size = np.sqrt(np.mean(np.square(values)))
            tensors[name] = bfloat16(values + share * size * rng.standard_normal(values.shape, np.float32))

    return change


def another_step(tensors: dict[str, Tensor]) -> None:
    """Of AdamW: every weight moves by the learning rate, here 3e-4, one way or the other."""
    rng = np.random.default_rng(4)
    for name, tensor in tensors.items():
        values = floats(tensor)
        tensors[name] = bfloat16(values + np.float32(3e-4) * rng.choice([-1, 1], values.shape).astype(np.float32))


def exchanged(tensors: dict[str, Tensor]) -> None:
    """The feed-forwards of two layers."""
    first, second = "model.layers.1.feed_forward.", "model.layers.2.feed_forward."
    for name in [name for name in tensors if name.startswith(first)]:
        other = name.replace(first, second)
        if other in tensors:
            tensors[name], tensors[other] = tensors[other], tensors[name]


WRONG = {
    "noise-0.1%": noise(0.001),
    "noise-1%": noise(0.01),
    "noise-3%": noise(0.03),
    "another-step": another_step,
    "layers-exchanged": exchanged,
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    for target, quant in ARTIFACTS:
        pipeline.convert("bundled:dense", target=target, quant=quant, out=folder / target, validate_after=False)
    return folder


@pytest.mark.parametrize(
    "kind", [k if k == "layers-exchanged" else pytest.param(k, marks=pytest.mark.slow) for k in WRONG]
)
def test_a_wrong_reference_is_named(made: Path, kind: str, tmp_path: Path) -> None:
    checkpoint = Path(shutil.copytree(bundled.path("dense"), tmp_path / "other"))
    for shard in checkpoint.glob("*.safetensors"):
        edit_tensors(shard, WRONG[kind])
    folders = [made / target for target, _ in ARTIFACTS]
    report = pipeline.validate(folders, reference=str(checkpoint), suite="smoke")
    for found in report.results:
        assert found.is_foreign and "made from another checkpoint" in found.message
    bare = [Path(shutil.copytree(folder, tmp_path / folder.name)) for folder in folders]
    for folder in bare:
        (folder / MANIFEST).unlink()
    report = pipeline.validate(bare, reference=str(checkpoint), suite="smoke")
    assert len(report.results) == len(ARTIFACTS)
    for found in report.results:
        assert found.verdict is Verdict.FAIL and found.failure is Failure.BROKEN, found.artifact.label
        gates = {gate.name: gate for gate in found.gates}
        assert not gates["stored_row"].passed, found.message
