"""Merging: every range gives the same rows, weights multiply, types round, and names are compared."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.adapters.adapter import adapting
from lfm_convert.graph.adapters.merging import merge_adapters
from lfm_convert.graph.dtypes import DType, Float32, to_bfloat16, widen
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from support.checkpoints import make_checkpoint, moe_config
from support.made_adapters import ALPHA, PREFIX, RANK, W1, factors, write_adapter
from support.safetensors_files import Tensor, edit_tensors, float32, write_tensors

WEIGHTS = "adapter_model.safetensors"


def w1(graph: WeightGraph) -> Float32:
    return graph.layers[0][Role.FFN_GATE].read()


def rounded(values: Float32) -> Float32:
    return widen(to_bfloat16(values), DType.BF16)


def product(seed: int) -> Float32:
    a, b = factors(W1, seed)
    return (b.astype(np.float64) @ a * (ALPHA / RANK)).astype(np.float32)


def test_several_with_weights_one_after_the_other(tiny_dense: Path, tmp_path: Path) -> None:
    folders = [write_adapter(tmp_path / name, seed=seed) for seed, name in enumerate("ab")]
    base = open_graph(tiny_dense)
    graph = merge_adapters(base, adapting(folders, [0.5, -2.0]))
    expected = rounded(rounded(w1(base) + product(0) * np.float32(0.5)) + product(1) * np.float32(-2))
    np.testing.assert_array_equal(w1(graph), expected)
    assert graph.layers[0][Role.FFN_GATE].dtype is DType.BF16
    assert graph.name == "tiny-dense-a-b"


def test_float32_keeps_what_bfloat16_would_round(tiny_dense: Path, tmp_path: Path) -> None:
    base, folder = open_graph(tiny_dense), write_adapter(tmp_path / "a")
    graph = merge_adapters(base, adapting([folder], dtype="float32"))
    np.testing.assert_array_equal(w1(graph), w1(base) + product(0))
    assert graph.layers[0][Role.FFN_GATE].dtype is DType.F32
    assert graph.layers[0][Role.FFN_UP].dtype is DType.BF16


@pytest.fixture(scope="module")
def merged(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    """With DoRA in one module, whose norms are of whole rows."""
    folder = write_adapter(tmp_path_factory.mktemp("ranges") / "dora", use_dora=True)

    def add(tensors: dict[str, Tensor]) -> None:
        for name in [name for name in tensors if name.endswith("lora_A.weight")]:
            n = tensors[name.replace("_A", "_B")].shape[0]
            tensors[name.replace("lora_A.weight", "lora_magnitude_vector")] = float32(np.linspace(0.5, 1.5, n))

    edit_tensors(folder / WEIGHTS, add)
    plain = write_adapter(folder.parent / "plain", seed=3)
    return merge_adapters(open_graph(tiny_dense), adapting([folder, plain]))


@given(start=st.integers(0, 255), length=st.integers(1, 256))
def test_any_range_gives_the_same_rows(merged: WeightGraph, start: int, length: int) -> None:
    view = merged.layers[0][Role.FFN_GATE]
    stop = min(start + length, view.n_rows)
    np.testing.assert_array_equal(view.rows(start, stop), view.read()[start:stop])


def test_experts_one_by_one_and_fused_are_the_same(tmp_path: Path) -> None:
    """An adapter of the fused stack, on a checkpoint that keeps each expert, and on one that keeps the stack."""
    config = moe_config()
    n, hidden, size = config["num_experts"], config["hidden_size"], config["moe_intermediate_size"]
    rng, experts = np.random.default_rng(0), f"{PREFIX}model.layers.1.feed_forward.experts"
    folder = write_adapter(
        tmp_path / "a", target_modules=[], target_parameters=["layers.1.feed_forward.experts.gate_up_proj"]
    )
    a, b = (rng.normal(0, 0.1, shape).astype(np.float32) for shape in ((n * RANK, hidden), (2 * size, RANK * n)))
    tensors = {f"{experts}.lora_A.weight": float32(a), f"{experts}.lora_B.weight": float32(b)}
    write_tensors(folder / WEIGHTS, tensors)
    found = []
    for fused in (False, True):
        base = open_graph(make_checkpoint(tmp_path / f"fused-{fused}", config, fused_experts=fused))
        graph = merge_adapters(base, adapting([folder], dtype="float32"))
        found.append({role: graph.layers[1][role].read() for role in (Role.EXPERT_GATE, Role.EXPERT_UP)})
    before = base.layers[1][Role.EXPERT_UP].read()
    expected = before[5] + (b[size:].reshape(size, RANK, n)[:, :, 5] @ a[5 * RANK : 6 * RANK]) * (ALPHA / RANK)
    np.testing.assert_allclose(found[0][Role.EXPERT_UP][5], expected, rtol=0, atol=1e-6)
    for role in found[0]:
        np.testing.assert_array_equal(found[0][role], found[1][role])


# --- whose adapter it is


def test_a_base_of_another_repository_is_refused(tiny_dense: Path, tmp_path: Path) -> None:
    snapshot = tmp_path / "models--Org--Model-1B/snapshots/0123"
    shutil.copytree(tiny_dense, snapshot)
    graph = open_graph(snapshot)

    def trained_on(name: str) -> WeightGraph:
        folder = write_adapter(tmp_path / name.replace("/", "-"), base_model_name_or_path=name)
        return merge_adapters(graph, adapting([folder]))

    with pytest.raises(InputError, match="was trained on Org/Model-2B, and the model is Org/Model-1B"):
        trained_on("Org/Model-2B")
    assert not any("names cannot tell" in note for note in trained_on("Org/Model-1B").notes)
    assert any("names cannot tell" in note for note in trained_on("other/model-1b-unsloth-bnb-4bit").notes)


def test_a_base_in_another_folder(tiny_dense: Path, tiny_moe: Path, tmp_path: Path) -> None:
    graph = open_graph(tiny_dense)
    other = write_adapter(tmp_path / "a", base_model_name_or_path=str(tiny_moe))
    with pytest.raises(InputError, match="which is another model"):
        merge_adapters(graph, adapting([other]))
    same = merge_adapters(graph, adapting([write_adapter(tmp_path / "b", base_model_name_or_path=str(tiny_dense))]))
    assert not any("names cannot tell" in note for note in same.notes)
    unsaid = merge_adapters(graph, adapting([write_adapter(tmp_path / "c")]))
    assert any("does not say which model it was trained on" in note for note in unsaid.notes)


# --- what is asked for


def test_weights_that_are_not_one_for_each(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    for weights in ([1.0, 2.0], [float("nan")]):
        with pytest.raises(UsageError):
            adapting([folder], weights)
    with pytest.raises(UsageError, match="no adapter"):
        adapting([], [0.5])
    with pytest.raises(InputError, match="no such folder"):
        adapting([tmp_path / "b"])


def test_an_adapter_beside_its_base_is_no_longer_said_to_be_left_out(tiny_dense: Path, tmp_path: Path) -> None:
    home = Path(shutil.copytree(tiny_dense, tmp_path / "model"))
    folder = write_adapter(home / "tuned")
    assert any("is not applied" in note for note in open_graph(home).notes)
    assert not any("is not applied" in note for note in open_graph(home, applied=[folder]).notes)


def test_rank_stabilised_and_patterns(tiny_dense: Path, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", use_rslora=True, alpha_pattern={"feed_forward.w1": 3})
    base = open_graph(tiny_dense)
    graph = merge_adapters(base, adapting([folder], dtype="float32"))
    a, b = factors(W1)
    np.testing.assert_allclose(w1(graph), w1(base) + b @ a * (3 / 2), rtol=0, atol=1e-6)
    assert json.loads((folder / "adapter_config.json").read_text())["r"] == RANK
