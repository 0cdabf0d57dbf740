"""Packed safetensors converted on: in floats and on the same grid they decode to the very same weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import main
from lfm_convert.targets.target import get_target
from support.packed_checkpoints import pack_checkpoint
from support.packers import awq, compressed, fp8_blocks, gptq, nf4

# What a checkpoint is packed as, by what it is called then.
PACKED: dict[str, Callable[[], tuple[Any, dict[str, Any]]]] = {
    "compressed-tensors int4 g32": lambda: compressed("pack-quantized", bits=4, group=32),
    "compressed-tensors int4 g64 asymmetric": lambda: compressed("pack-quantized", bits=4, group=64, symmetric=False),
    "compressed-tensors int8 g32": lambda: compressed("pack-quantized", bits=8, group=32),
    "GPTQ int4 g32": lambda: gptq(4, 32),
    "AWQ int4 g32": lambda: awq(32),
    "FP8 E4M3 in blocks of 32x64": lambda: fp8_blocks(32, 64),
    "bitsandbytes nf4 in blocks of 64, nested": lambda: nf4(),
}
# Where every code goes on unchanged.
ON_GRID = [
    ("compressed-tensors int4 g32", "onnx", "q4"),
    ("compressed-tensors int4 g32", "mlx", "4bit-g32"),
    ("compressed-tensors int4 g64 asymmetric", "onnx", "q8"),
    ("compressed-tensors int8 g32", "mlx", "8bit-g32"),
    ("GPTQ int4 g32", "onnx", "q4"),
    ("AWQ int4 g32", "onnx", "q4"),
]


@pytest.fixture(scope="module")
def packed(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The folder of a packed checkpoint, by what it is packed as."""
    folder = tmp_path_factory.mktemp("packed")

    @cache
    def made(kind: str) -> Path:
        found = Path(shutil.copytree(tiny_dense, folder / kind.replace(" ", "-").replace(",", "")))
        pack, settings = PACKED[kind]()
        pack_checkpoint(found, pack, settings)
        return found

    return made


def differences(source: Path, target: str, quant: str, out: Path) -> tuple[list[str], pipeline.Converted]:
    """The weights that an artifact of a source decodes to otherwise, of those that were packed."""
    graph = pipeline.open_model(str(source))
    done = pipeline.convert(graph, target=target, quant=quant, out=out, validate_after=False)
    found = get_target(target).read(done.artifacts[0])
    packed = [weight for weight in graph.weights() if quant in ("F32", "fp32") or weight.view.grid is not None]
    assert len(packed) > 20
    return [w.view.name for w in packed if not np.array_equal(found[w.address].read(), w.view.read())], done


@pytest.mark.parametrize("kind", PACKED)
def test_floats_are_what_it_decodes_to(packed: Any, kind: str, tmp_path: Path) -> None:
    wrong, done = differences(packed(kind), "gguf", "F32", tmp_path / "out")
    assert wrong == []
    manifest = json.loads((done.folder / "lfm-convert.json").read_text())
    assert manifest["source"]["quantised_as"] == kind
    assert any(f"from {kind}: " in note for note in done.plans[0].notes)


@pytest.mark.parametrize(("kind", "target", "quant"), ON_GRID)
def test_codes_go_on_unchanged(packed: Any, kind: str, target: str, quant: str, tmp_path: Path) -> None:
    wrong, done = differences(packed(kind), target, quant, tmp_path / "out")
    assert wrong == []
    assert any(" go unchanged: nothing is lost beyond" in note for note in done.plans[0].notes), done.plans[0].notes


def test_a_small_float_has_no_grid(packed: Any, tmp_path: Path) -> None:
    (plan,) = pipeline.plan(str(packed("FP8 E4M3 in blocks of 32x64")), target="gguf", quant="Q8_0")
    assert (
        "no type has the codes of FP8 E4M3 in blocks of 32x64: whatever is not float32 is rounded again" in plan.notes
    )


def test_the_config_of_the_packing_does_not_go_on(packed: Any, tmp_path: Path) -> None:
    _, done = differences(packed("compressed-tensors int4 g32"), "mlx", "4bit-g32", tmp_path / "out")
    config = json.loads(next(done.folder.rglob("config.json")).read_text())
    assert config["quantization_config"] == config["quantization"] and "quant_method" not in config["quantization"]
    _, done = differences(packed("compressed-tensors int4 g32"), "onnx", "fp32", tmp_path / "floats")
    assert "quantization_config" not in json.loads(next(done.folder.rglob("config.json")).read_text())


def test_every_command_takes_it(
    packed: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    kind, folder = "GPTQ int4 g32", str(packed("GPTQ int4 g32"))
    assert main(["inspect", folder, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantised_as"] == kind
    assert main([folder, "--target", "gguf", "--quant", "Q8_0", "--json", "report.json", "--out", "out"]) == 0
    report = json.loads(Path("report.json").read_text())["validation"]
    assert report["model_quantised_as"] == kind and report["artifacts"][0]["verdict"] == "pass"
    capsys.readouterr()
    assert main(["plan", folder, "--target", "onnx", "--quant", "q4", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["plans"][0]["quantised_as"] == kind


def test_workers_and_ranges_change_no_byte(packed: Any, tmp_path: Path) -> None:
    graph = pipeline.open_model(str(packed("AWQ int4 g32")))
    found = [
        pipeline.convert(graph, target="gguf", quant="Q8_0", out=tmp_path / str(jobs), jobs=jobs, range_bytes=size, validate_after=False)
        for jobs, size in ((1, 4 << 20), (3, 7 << 10))
    ]  # fmt: skip
    first, second = (done.artifacts[0].path.read_bytes() for done in found)
    assert first == second


def test_scales_are_taken_from_the_file(packed: Any, tmp_path: Path) -> None:
    """The comparison can fail: another scale gives other weights."""
    folder = Path(shutil.copytree(packed("GPTQ int4 g32"), tmp_path / "model"))
    graph = pipeline.open_model(str(folder))
    name = next(weight.view.name for weight in graph.weights() if weight.view.grid is not None)
    tensor = graph.checkpoint.tensors[name.removesuffix(".weight") + ".scales"]
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(tensor.offset)
        file.write(torch.tensor([1.0], dtype=torch.float16).numpy().tobytes())
    before, after = (
        {weight.view.name: weight.view for weight in pipeline.open_model(str(path)).weights()}[name].read()
        for path in (packed("GPTQ int4 g32"), folder)
    )
    changed = np.argwhere(before != after)
    assert len(changed) and set(changed[:, 0]) == {0} and changed[:, 1].max() < 32
