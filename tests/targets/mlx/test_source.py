"""MLX folders as sources: of ours and of mlx_lm.convert, decoded as MLX decodes them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.mlx.source import open_source
from support.artifacts import write_artifact
from support.refusals import refused

QUANTS = (
    "2bit", "3bit-g32", "4bit", "4bit-g128", "5bit", "6bit", "8bit-g32", "mixed_4_8", "4bit-e6", "mxfp4", "mxfp8", "nvfp4",
    "nvfp4-e8", "bf16",
)  # fmt: skip


def opened(folder: Path) -> WeightGraph:
    found = open_source(folder)
    assert found is not None
    return found


@pytest.mark.parametrize("quant", QUANTS)
def test_values_are_those_of_mlx(quant: str, moe_graph: WeightGraph, tmp_path: Path) -> None:
    mx = pytest.importorskip("mlx.core")
    folder = write_artifact(moe_graph, "mlx", quant, tmp_path).path.parent
    source = opened(folder)
    assert source.quantised_as == (None if quant == "bf16" else f"MLX {quant}")
    assert source.config == moe_graph.config and source.stop_ids == moe_graph.stop_ids
    arrays, settings = mx.load(str(folder / "model.safetensors")), json.loads((folder / "config.json").read_text())
    quantization = settings.get("quantization", {})
    for weight in source.weights():
        name = weight.view.name
        module = name.removesuffix(".weight")
        if f"{module}.scales" in arrays:
            own = {"mode": "affine", **quantization, **quantization.get(module, {})}
            biases = arrays.get(f"{module}.biases")
            scales = arrays[f"{module}.scales"]
            if biases is not None:  # in float32, as the type of scales is that of what is decoded
                scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
            values = mx.dequantize(
                arrays[name],
                scales,
                biases,
                group_size=own["group_size"],
                bits=own["bits"],
                mode=own["mode"],
                dtype=mx.float32,
            )
            assert weight.view.stored_as is not None
        else:
            values = arrays[name].astype(mx.float32)
            assert weight.view.stored_as is None
        assert np.array_equal(weight.view.read(), np.array(values).reshape(weight.shape)), name


def test_a_folder_of_mlx_lm(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Its own converter writes a folder whose codes, scales and biases come out as they went in."""
    pytest.importorskip("mlx_lm")
    from mlx_lm import convert

    checkpoint = tmp_path / "checkpoint"
    shutil.copytree(dense_graph.folder, checkpoint)
    convert(str(checkpoint), mlx_path=str(tmp_path / "theirs"), quantize=True, q_bits=4, q_group_size=32)
    source = opened(tmp_path / "theirs")
    assert source.quantised_as == "MLX 4bit-g32"
    again = opened(write_artifact(source, "mlx", "4bit-g32", tmp_path / "ours").path.parent)
    for weight, other in zip(source.weights(), again.weights(), strict=True):
        assert np.array_equal(weight.view.read(), other.view.read())
        if weight.view.stored_as:
            pairs = zip(weight.view.stored_rows(0, 4), other.view.stored_rows(0, 4), strict=True)
            assert all(np.array_equal(a, b) for a, b in pairs)


def test_a_checkpoint_is_no_folder_of_mlx(dense_graph: WeightGraph, moe_graph: WeightGraph) -> None:
    assert open_source(dense_graph.folder) is None and open_source(moe_graph.folder) is None
    assert open_source(dense_graph.folder / "config.json") is None


def test_settings_over_plain_floats_are_stale(tiny_dense: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_dense, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization": {"group_size": 64, "bits": 4}}))
    assert open_source(folder) is None
    assert any("plain floats" in note for note in open_graph(folder).notes)


def test_packed_arrays_of_which_the_config_says_nothing(moe_graph: WeightGraph, tmp_path: Path) -> None:
    folder = write_artifact(moe_graph, "mlx", "4bit", tmp_path).path.parent
    config = json.loads((folder / "config.json").read_text())
    without = {key: value for key, value in config.items() if not key.startswith("quantization")}
    (folder / "config.json").write_text(json.dumps(without))
    assert open_source(folder) is None
    with refused(folder, "is quantised by MLX (tensor '"):
        open_graph(folder)


def test_scales_that_are_no_numbers(moe_graph: WeightGraph, tmp_path: Path) -> None:
    folder = write_artifact(moe_graph, "mlx", "4bit", tmp_path).path.parent
    view = next(weight.view for weight in opened(folder).weights() if weight.view.stored_as)
    scales = view._parts[1]  # type: ignore[attr-defined]
    data = bytearray(scales.path.read_bytes())
    data[scales.offset : scales.offset + 2] = b"\xc0\x7f"  # NaN in bfloat16
    scales.path.write_bytes(data)
    with pytest.raises(InputError, match="is not finite in row 0: expected finite weights"):
        next(weight.view for weight in opened(folder).weights() if weight.view.stored_as).rows(0, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"num_hidden_layers": 3}, "layer_types has 4 entries but num_hidden_layers is 3"),
        ({"vocab_size": 600}, "expected U32 [600"),
        ({"quantization": {"group_size": 64, "bits": 7}}, "expected a format of MLX"),
    ],
)
def test_a_folder_that_contradicts_itself(
    change: dict[str, Any], sentence: str, moe_graph: WeightGraph, tmp_path: Path
) -> None:
    folder = write_artifact(moe_graph, "mlx", "4bit", tmp_path).path.parent
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with refused(folder, sentence):
        open_source(folder)


def test_scales_tell_the_float_type(moe_graph: WeightGraph, tmp_path: Path) -> None:
    source = opened(write_artifact(moe_graph, "mlx", "4bit", tmp_path).path.parent)
    assert {weight.view.dtype for weight in source.weights()} <= {DType.BF16, DType.F32}
