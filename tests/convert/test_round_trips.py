"""Artifacts as sources: converted on, in floats or on the same grid, they decode to the very same weights."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import pipeline
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Address, Role
from lfm_convert.graph.tensor import TensorView
from lfm_convert.quantize.stored import Encoded
from lfm_convert.targets.encoded import encoding_of
from lfm_convert.targets.target import get_target

MODELS = ("dense", "moe", "lfm3")
# What is made first: a name, its target, quant and options.
FIRST: dict[str, tuple[str, str, dict[str, Any]]] = {
    "Q8_0": ("gguf", "Q8_0", {}),
    "Q4_0": ("gguf", "Q4_0", {"pure": True}),
    "MLX 4bit": ("mlx", "4bit", {}),
    "compressed-tensors int4 g32": ("compressed-tensors", "W4A16-g32", {}),
}
# What it is converted to, with every weight the same.
ON_GRID = {
    "Q8_0": [("gguf", "Q8_0"), ("mlx", "8bit-g32"), ("onnx", "q8")],
    "Q4_0": [
        ("gguf", "Q8_0"), ("mlx", "4bit-g32"), ("mlx", "8bit-g32"), ("onnx", "q4"), ("compressed-tensors", "W4A16-g32"),
    ],
    "MLX 4bit": [("mlx", "4bit"), ("mlx", "6bit"), ("mlx", "8bit-g32")],
    "compressed-tensors int4 g32": [("compressed-tensors", "W4A16-g32")],
}  # fmt: skip
# The same but for the token table, which servers' formats have in 16 bits, and the others in codes.
BUT_FOR_THE_TABLE = [
    ("Q8_0", "compressed-tensors", "W8A16-g32"),
    ("compressed-tensors int4 g32", "mlx", "4bit-g32"),
    ("compressed-tensors int4 g32", "onnx", "q4"),
]
IN_FLOATS = [("gguf", "F32"), ("onnx", "fp32")]
CASES = [(first, *to) for first, found in ON_GRID.items() for to in (*found, *IN_FLOATS)]


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The source of a bundled model that was converted once, by its name and what it is stored as."""
    folder = tmp_path_factory.mktemp("first")

    @cache
    def opened(model: str, stored: str) -> WeightGraph:
        target, quant, options = FIRST[stored]
        out = folder / f"{model}-{stored}"
        done = pipeline.convert(
            f"bundled:{model}", target=target, quant=quant, options=options, out=out, validate_after=False
        )
        (artifact,) = done.artifacts
        source = pipeline.open_model(str(artifact.path if target == "gguf" else artifact.path.parent))
        assert source.quantised_as == stored
        return source

    return opened


def written(source: WeightGraph, target: str, quant: str, out: Path, **options: Any) -> dict[Address, TensorView]:
    """What the artifact of a source decodes to."""
    done = pipeline.convert(source, target=target, quant=quant, out=out, options=options, validate_after=False)
    return get_target(target).read(done.artifacts[0])


def differences(source: WeightGraph, found: dict[Address, TensorView]) -> list[str]:
    return [
        f"{weight.view.name}: {np.abs(found[weight.address].read() - weight.view.read()).max()}"
        for weight in source.weights()
        if not np.array_equal(found[weight.address].read(), weight.view.read())
    ]


@pytest.mark.parametrize(("stored", "target", "quant"), CASES)
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_is_the_same(first: Any, model: str, stored: str, target: str, quant: str, tmp_path: Path) -> None:
    source = first(model, stored)
    assert differences(source, written(source, target, quant, tmp_path / "out")) == []


@pytest.mark.parametrize(("stored", "target", "quant"), BUT_FOR_THE_TABLE)
@pytest.mark.parametrize("model", MODELS)
def test_every_weight_but_the_token_table(
    first: Any, model: str, stored: str, target: str, quant: str, tmp_path: Path
) -> None:
    source = first(model, stored)
    (table,) = differences(source, written(source, target, quant, tmp_path / "out"))
    assert table.startswith(source[Role.EMBED].name)


@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize("stored", FIRST)
def test_the_first_artifact_is_what_it_decodes_to(first: Any, model: str, stored: str) -> None:
    """As the target itself reads its artifact."""
    source, target = first(model, stored), FIRST[stored][0]
    path = source.checkpoint.stamps[0].path
    (artifact,) = get_target(target).recognise(path if target == "gguf" else path.parent)
    assert differences(source, get_target(target).read(artifact)) == []


@pytest.mark.parametrize("model", ["dense", "moe"])
@pytest.mark.parametrize(("stored", "target"), [("Q8_0", "gguf"), ("Q4_0", "gguf"), ("MLX 4bit", "mlx")])
def test_the_same_format_has_the_same_bytes(first: Any, model: str, stored: str, target: str, tmp_path: Path) -> None:
    source, (_, quant, options) = first(model, stored), FIRST[stored]
    done = pipeline.convert(
        source, target=target, quant=quant, options=options, out=tmp_path / "out", validate_after=False
    )
    entry = done.artifacts[0].entry
    n_packed = 0
    for weight in source.weights():
        if weight.view.stored_as is None:
            continue
        n_packed += 1
        name = next(t for t in entry["tensors"] if (t["role"], t["layer"]) == (weight.role.value, weight.layer))
        assert name["unchanged"] is True
        for part, wanted in zip(name["parts"], weight.view.stored_rows(0, weight.view.n_rows), strict=True):
            data = wanted.tobytes()
            with (done.folder / part["path"]).open("rb") as file:
                file.seek(part["offset"])
                assert file.read(len(data)) == data
    assert n_packed > 20
    assert (
        f"of {n_packed} tensors with codes {n_packed} go unchanged: nothing is lost beyond {stored}" in entry["notes"]
    )


@pytest.mark.parametrize("model", ["dense", "moe"])
def test_core_ml_has_the_grid_and_gives_it_in_float16(first: Any, model: str, tmp_path: Path) -> None:
    source = first(model, "Q4_0")
    found = written(source, "coreml", "int4", tmp_path / "out")
    n_same = 0
    for weight in source.weights():
        stored = encoding_of(found[weight.address])
        if stored is not None and stored.name == "coreml_int4":
            n_same += 1
            values = weight.view.read().astype(np.float16).astype(np.float32)
            assert np.array_equal(found[weight.address].read(), values), weight.view.name
    assert n_same > 10


@pytest.mark.slow
@pytest.mark.parametrize("stored", FIRST)
@pytest.mark.parametrize("model", MODELS)
def test_executorch_in_floats(first: Any, model: str, stored: str, tmp_path: Path) -> None:
    source = first(model, stored)
    assert differences(source, written(source, "executorch", "fp32", tmp_path / "out")) == []


def test_executorch_keeps_the_grid_of_a_table(first: Any, tmp_path: Path) -> None:
    source = first("dense", "Q4_0")
    (plan,) = pipeline.plan(source, target="executorch", quant="8da4w")
    kept = [tensor.encoding.name for tensor in plan.tensors if tensor.passes]
    assert kept == ["et_embed4_g32"]
    assert any("30 are rounded again" in note or "are rounded again" in note for note in plan.notes)


def test_what_a_swap_would_do(first: Any, tmp_path: Path) -> None:
    """The comparison can fail: two weights of one shape in each other's place."""
    source = first("dense", "Q4_0")
    found = written(source, "mlx", "4bit-g32", tmp_path / "out")
    gates = [address for address in found if address[0].value in ("ffn_gate", "ffn_up")][:2]
    found[gates[0]], found[gates[1]] = found[gates[1]], found[gates[0]]
    assert len(differences(source, found)) == 2
    assert all(isinstance(view, Encoded) for view in found.values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("target", "quant"), [("mlx", "4bit-g32"), ("onnx", "q4"), ("gguf", "Q8_0"), ("coreml", "int4")]
)
@pytest.mark.parametrize("model", ["dense", "moe"])
def test_runtimes_compute_with_what_went_unchanged(
    first: Any, model: str, target: str, quant: str, tmp_path: Path
) -> None:
    """Scales of Q4_0 may be negative, which no encoder of these formats makes them."""
    done = pipeline.convert(first(model, "Q4_0"), target=target, quant=quant, out=tmp_path / "out")
    assert done.report is not None
    (result,) = done.report.results
    assert result.verdict.value == "pass", result.message
    assert result.metrics is not None and result.metrics.kld_mean < 5e-3
