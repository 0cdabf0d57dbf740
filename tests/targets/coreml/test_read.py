"""A package's weights are read from the package itself; what is damaged or foreign is named."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.graph.errors import InputError
from lfm_convert.targets.coreml.package import MODEL, WEIGHTS
from lfm_convert.targets.encoded import as_stored
from lfm_convert.targets.target import NotJudged, get_target

from .packages import Made

QUANTS = ("fp16", "int8", "int4", "int4-pal")


@pytest.mark.parametrize("quant", QUANTS)
def test_every_weight_as_its_encoder_leaves_it(quant: str, made: Callable[..., Made]) -> None:
    package = made("moe", quant)
    found = package.target.read(package.artifact)
    assert set(found) == {weight.address for weight in package.graph.weights()}
    for weight in package.graph.weights():
        view = found[weight.address]
        assert view.shape == weight.shape
        expected = as_stored(view, weight.view.rows(0, weight.view.n_rows))
        np.testing.assert_array_equal(view.rows(0, view.n_rows), expected)


def copied(made: Made, folder: Path) -> Path:
    return Path(shutil.copytree(made.package, folder / "model.mlpackage"))


def test_recognised_without_a_manifest(made: Callable[..., Made], tmp_path: Path) -> None:
    """One of ours says itself which constant is which weight."""
    package = made("dense", "int4")
    path = copied(package, tmp_path).rename(tmp_path / "some.mlpackage")
    target = get_target("coreml")
    for where in (path, tmp_path):
        (artifact,) = target.recognise(where)
        assert (artifact.quant, artifact.class_name, artifact.label) == ("int4", "q4", "some.mlpackage")
    assert set(target.read(artifact)) == set(package.target.read(package.artifact))
    names = {tensor.name: tensor.encoding for tensor in target.listed(artifact)}
    assert names["ffn_gate_0"] == "blockwise_shift_scale uint4 uint4 fp16"
    assert names["conv_kernel_0"] == "fp16" and "rotary_0_cos" in names


def test_a_package_alone_is_judged_by_a_relative_path(
    made: Callable[..., Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = made("dense", "int8")
    copied(package, tmp_path)
    monkeypatch.chdir(tmp_path)
    (artifact,) = find_artifacts(Path("model.mlpackage"))
    assert artifact.path.relative_to(artifact.folder) == Path("model.mlpackage/Manifest.json")
    assert all(file.relative_to(artifact.folder) for file in artifact.files)


def test_of_another_writer(tmp_path: Path) -> None:
    mb = pytest.importorskip("coremltools.converters.mil").Builder
    import coremltools

    @mb.program(input_specs=[mb.TensorSpec((1, 32))], opset_version=coremltools.target.iOS18)
    def program(x):  # type: ignore[no-untyped-def]
        return mb.linear(x=x, weight=np.ones((8, 32), np.float32), name="projection")

    model = coremltools.convert(program, minimum_deployment_target=coremltools.target.iOS18, skip_model_load=True)
    model.save(str(tmp_path / "other.mlpackage"))
    (artifact,) = get_target("coreml").recognise(tmp_path)
    assert (artifact.quant, artifact.class_name) == ("f16", "f16")
    with pytest.raises(NotJudged, match="do not say which weight they are"):
        get_target("coreml").read(artifact)
    assert [tensor.nbytes for tensor in get_target("coreml").listed(artifact)][:1] == [8 * 32 * 2]
    with pytest.raises(InputError, match="functions are main: expected decode and prefill"):
        get_target("coreml").run(artifact, threads=1)


def test_damaged(made: Callable[..., Made], tmp_path: Path) -> None:
    package = made("dense", "int8")
    cut = copied(package, tmp_path / "cut")
    data = (cut / WEIGHTS).read_bytes()
    (cut / WEIGHTS).write_bytes(data[: len(data) // 2])
    overwritten = copied(package, tmp_path / "overwritten")
    (overwritten / WEIGHTS).write_bytes(data[:64] + bytes(64) + data[128:])
    nonsense = copied(package, tmp_path / "nonsense")
    (nonsense / MODEL).write_bytes(b"\xff" * 1000)
    for path, sentence in (
        (cut, "is truncated"),
        (overwritten, "expected the entry of a constant at byte 64"),
        (nonsense, "is no model of Core ML"),
    ):
        with pytest.raises(InputError, match=sentence):
            (artifact,) = get_target("coreml").recognise(path)
            get_target("coreml").read(artifact)
