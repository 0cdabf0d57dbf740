"""Every tensor's name, type and value is that of mlx_lm.convert on the same machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import mlx_lm
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.opening import open_graph
from support.artifacts import write_artifact
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.mlx_arrays import assert_equal

pytestmark = pytest.mark.peers

BITS = (8, 6, 5, 4, 3, 2)
QUANTS: dict[str, dict[str, Any]] = {
    **{f"{bits}bit": {"q_bits": bits, "q_group_size": 64} for bits in BITS},
    **{f"{bits}bit-g{group}": {"q_bits": bits, "q_group_size": group} for bits in BITS for group in (32, 128)},
    **{mode: {"q_mode": mode} for mode in ("mxfp4", "mxfp8", "nvfp4")},
    "bf16": {"quantize": False, "dtype": "bfloat16"},
}
# The config without torch_dtype keeps what the tensors are in; with it, mlx-lm casts to it first.
CHECKPOINTS: dict[str, dict[str, Any]] = {
    "dense-bf16": {"config": dense_config()},
    "dense-f32": {"config": dense_config(torch_dtype=None, dtype="float32"), "dtype": "float32"},
    "moe-bf16-sharded": {"config": moe_config(), "shards": 2},
    "moe-f16": {"config": moe_config(), "dtype": "float16"},
    "moe-bias": {"config": moe_config(conv_bias=True, use_expert_bias=False)},
}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory, bundled_dense: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("peers")
    made = {name: make_checkpoint(folder / name, **settings) for name, settings in CHECKPOINTS.items()}
    cast = make_checkpoint(folder / "dense-cast", dense_config(), dtype="float32")
    config = json.loads((cast / "config.json").read_text())
    (cast / "config.json").write_text(json.dumps({**config, "torch_dtype": "bfloat16"}))
    return {**made, "dense-cast": cast, "bundled-dense": bundled_dense, "bundled-moe": bundled.path("moe")}


@pytest.mark.parametrize("checkpoint", [*CHECKPOINTS, "dense-cast", "bundled-dense", "bundled-moe"])
@pytest.mark.parametrize("quant", QUANTS)
def test_tensors_are_those_of_mlx_lm(checkpoints: dict[str, Path], checkpoint: str, quant: str, tmp_path: Path) -> None:
    source = checkpoints[checkpoint]
    mlx_lm.convert(str(source), str(tmp_path / "theirs"), **{"quantize": True, **QUANTS[quant]})
    artifact = write_artifact(open_graph(source), "mlx", quant, tmp_path / "mine")
    assert_equal(tmp_path / "theirs", artifact.path.parent)


@pytest.mark.parametrize(
    "quant", ["mixed_4_8", "4bit-e6", "mxfp4-e8", "4bit-g32-e6", "nvfp4-e6", "mxfp8-e5", "8bit-g128-e4"]
)
@pytest.mark.parametrize("checkpoint", ["bundled-dense", "bundled-moe"])
def test_mixed_tensors_are_those_of_mlx_lm(
    checkpoints: dict[str, Path], checkpoint: str, quant: str, tmp_path: Path
) -> None:
    """With the settings we wrote handed to mlx-lm module by module."""
    source = checkpoints[checkpoint]
    artifact = write_artifact(open_graph(source), "mlx", quant, tmp_path / "mine")
    settings = json.loads(artifact.path.read_text())["quantization"]
    common = {key: settings[key] for key in ("group_size", "bits", "mode")}
    mlx_lm.convert(
        str(source),
        str(tmp_path / "theirs"),
        quantize=True,
        q_mode=common["mode"],
        quant_predicate=lambda path, module: dict(settings.get(path, common)),
    )
    assert len(settings) > len(common)
    assert_equal(tmp_path / "theirs", artifact.path.parent)


def test_a_changed_code_is_seen(checkpoints: dict[str, Path], tmp_path: Path) -> None:
    """Negative control: one bit of one weight."""
    artifact = write_artifact(open_graph(checkpoints["moe-f16"]), "mlx", "8bit", tmp_path / "mine")
    mlx_lm.convert(str(checkpoints["moe-f16"]), str(tmp_path / "theirs"), quantize=True, q_bits=8)
    weights = artifact.path.with_name("model.safetensors")
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    with pytest.raises(AssertionError):
        assert_equal(tmp_path / "theirs", artifact.path.parent)
