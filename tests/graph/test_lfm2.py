"""Binding: every tensor of a checkpoint has one place, and all faults come in one sentence."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.graph.blocks import Mixture
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import declare, open_graph
from lfm_convert.graph.roles import Role
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.configs import preset
from support.refusals import refused
from support.safetensors_files import Tensor, bfloat16, edit_tensors, float32

EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
EXPERTS = "model.layers.1.feed_forward.experts."

Change = Callable[[dict[str, Tensor]], object]


@pytest.fixture
def edited(tmp_path: Path) -> Callable[[Path, Change], Path]:
    """A copy of a folder whose tensors were changed."""

    def copy(source: Path, change: Change) -> Path:
        folder = Path(shutil.copytree(source, tmp_path / "edited"))
        edit_tensors(folder / "model.safetensors", change)
        return folder

    return copy


@pytest.fixture(scope="module")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_checkpoint(tmp_path_factory.mktemp("fused"), moe_config(), fused_experts=True)


def same_weights(a: WeightGraph, b: WeightGraph) -> bool:
    pairs = list(zip(a.weights(), b.weights(), strict=True))
    return all(
        (x.role, x.layer, x.shape) == (y.role, y.layer, y.shape) and np.array_equal(x.view.read(), y.view.read())
        for x, y in pairs
    )


def test_every_tensor_has_one_place(moe_graph: WeightGraph) -> None:
    assert moe_graph.checkpoint is not None
    in_file = sum(tensor.nbytes for tensor in moe_graph.checkpoint.tensors.values())
    assert sum(weight.view.nbytes for weight in moe_graph.weights()) == in_file
    assert not moe_graph.notes
    assert [isinstance(layer.feed_forward, Mixture) for layer in moe_graph.layers] == [False, True, True, True]
    assert moe_graph.layers[1][Role.EXPERT_BIAS].dtype.value == "F32"


def test_missing_extra_misshapen_and_mistyped_are_reported_together(
    edited: Callable[[Path, Change], Path], tiny_dense: Path
) -> None:
    def damage(tensors: dict[str, Tensor]) -> None:
        del tensors["model.embedding_norm.weight"]
        del tensors["model.layers.3.feed_forward.w1.weight"]
        tensors["model.layers.0.surprise"] = float32([1.0])
        tensors["model.layers.0.conv.conv.weight"] = bfloat16(np.ones((128, 3)))
        tensors["model.layers.1.self_attn.q_proj.weight"] = bfloat16(np.ones((64, 128)))
        tensors["model.layers.2.ffn_norm.weight"] = Tensor("F64", (128,), bytes(1024))

    with refused(
        "tensor 'model.embedding_norm.weight' is missing (expected shape [128])",
        "tensor 'model.layers.3.feed_forward.w1.weight' is missing (expected shape [256, 128])",
        "tensor 'model.layers.0.surprise' is not part of the model",
        "'model.layers.0.conv.conv.weight' has the wrong shape: expected [128, 1, 3], found [128, 3]",
        "'model.layers.1.self_attn.q_proj.weight' has the wrong shape: expected [128, 128], found [64, 128]",
        "'model.layers.2.ffn_norm.weight' is F64",
    ):
        open_graph(edited(tiny_dense, damage))


@pytest.mark.parametrize(
    ("config", "parts"),
    [
        ({"num_experts": 16}, ("'model.layers.1.feed_forward.gate.weight' has the wrong shape: expected [16, 128]",)),
        ({"num_experts": 6}, ("the config describes 6 experts, the tensors are of 8",)),
        ({"use_expert_bias": False}, ("'model.layers.1.feed_forward.expert_bias' is not part",)),
        ({"conv_bias": True}, ("'model.layers.0.conv.in_proj.bias' is missing (expected shape [384])",)),
    ],
)
def test_a_config_of_another_model_is_noticed(
    config: dict, parts: tuple[str, ...], tmp_path: Path, tiny_moe: Path
) -> None:
    folder = make_checkpoint(tmp_path, moe_config(**config))
    (folder / "model.safetensors").unlink()
    shutil.copyfile(tiny_moe / "model.safetensors", folder / "model.safetensors")
    with refused(*parts):
        open_graph(folder)


def test_fused_experts_are_the_same_model(fused: Path, moe_graph: WeightGraph) -> None:
    assert same_weights(open_graph(fused), moe_graph)


@pytest.mark.parametrize(
    ("name", "shape"), [("gate_up_proj", "[8, 128, 128]"), ("down_proj", "[8, 128, 64]")]
)  # fmt: skip
def test_a_missing_fused_tensor_is_one_fault(
    name: str, shape: str, edited: Callable[[Path, Change], Path], fused: Path
) -> None:
    with pytest.raises(Exception, match="is missing") as caught:
        open_graph(edited(fused, lambda tensors: tensors.pop(EXPERTS + name)))
    assert str(caught.value).endswith(f": tensor '{EXPERTS}{name}' is missing (expected shape {shape})")


def test_fused_and_separate_experts_do_not_mix(edited: Callable[[Path, Change], Path], fused: Path) -> None:
    extra = f"{EXPERTS}0.w1.weight"
    with refused(f"tensor '{extra}' is not part of the model"):
        open_graph(edited(fused, lambda tensors: tensors.update({extra: bfloat16(np.ones((64, 128)))})))


def test_a_misshapen_fused_tensor_is_reported(edited: Callable[[Path, Change], Path], fused: Path) -> None:
    wrong = bfloat16(np.ones((8, 64, 128)))
    with refused(f"'{EXPERTS}gate_up_proj' has the wrong shape: expected [8, 128, 128], found [8, 64, 128]"):
        open_graph(edited(fused, lambda tensors: tensors.update({EXPERTS + "gate_up_proj": wrong})))


def test_a_head_equal_to_the_embedding_is_stored_once(edited: Callable[[Path, Change], Path], tiny_dense: Path) -> None:
    graph = open_graph(edited(tiny_dense, lambda tensors: tensors.update({HEAD: tensors[EMBED]})))
    assert graph.is_tied and graph.head is graph[Role.EMBED]
    assert graph.notes == ("tensor 'lm_head.weight' equals the embedding and is not stored twice",)


def test_a_head_that_differs_is_kept_with_a_note(edited: Callable[[Path, Change], Path], tiny_dense: Path) -> None:
    def nudge(tensors: dict[str, Tensor]) -> None:
        data = bytearray(tensors[EMBED].data)
        data[-2] ^= 1
        tensors[HEAD] = Tensor("BF16", (512, 128), bytes(data))

    graph = open_graph(edited(tiny_dense, nudge))
    assert not graph.is_tied and not graph.config.tied
    assert graph.head is graph[Role.LM_HEAD]
    assert graph.notes == ("the config ties head and embedding, but 'lm_head.weight' differs: both are kept",)


@pytest.mark.parametrize("shape", [(), (0,), (512, 0)])
def test_degenerate_head_and_embedding_are_a_fault_not_a_crash(
    shape: tuple[int, ...], edited: Callable[[Path, Change], Path], tiny_dense: Path
) -> None:
    odd = float32(np.zeros(shape))
    with refused(f"'{EMBED}' has the wrong shape"):
        open_graph(edited(tiny_dense, lambda tensors: tensors.update({EMBED: odd, HEAD: odd})))


def test_an_untied_config_demands_a_head(tmp_path: Path, tiny_dense: Path) -> None:
    folder = make_checkpoint(tmp_path, dense_config(tie_embedding=False))
    assert not open_graph(folder).is_tied
    edit_tensors(folder / "model.safetensors", lambda tensors: tensors.pop(HEAD))
    with refused(f"tensor '{HEAD}' is missing (expected shape [512, 128])"):
        open_graph(folder)


def test_rotary_buffers_are_dropped_with_a_note(edited: Callable[[Path, Change], Path], tiny_dense: Path) -> None:
    name = "model.pos_emb.inv_freq"
    graph = open_graph(edited(tiny_dense, lambda tensors: tensors.update({name: float32(np.ones(16))})))
    assert graph.notes == (f"tensor '{name}' is derived from the config and not used",)


@pytest.mark.parametrize("name", [f"{EXPERTS}3.w3.weight", EXPERTS + "gate_up_proj"])
def test_not_a_number_is_found_under_the_name_in_the_file(
    name: str, edited: Callable[[Path, Change], Path], fused: Path, tiny_moe: Path
) -> None:
    source = fused if name.endswith("proj") else tiny_moe
    flat = (3 * 128 + 64 + 5) * 128 + 6 if name.endswith("proj") else 5 * 128 + 6
    index = "[3, 69, 6]" if name.endswith("proj") else "[5, 6]"

    def poison(tensors: dict[str, Tensor]) -> None:
        tensor = tensors[name]
        data = bytearray(tensor.data)
        data[2 * flat : 2 * flat + 2] = b"\xc0\x7f"
        tensors[name] = tensor._replace(data=bytes(data))

    up = open_graph(edited(source, poison)).layers[1][Role.EXPERT_UP]
    with refused(f"tensor '{name}' holds nan at {index}"):
        up.read()


@pytest.mark.parametrize("kind", ["tiny-dense", "tiny-moe"])
def test_a_config_alone_declares_what_a_checkpoint_holds(kind: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path, preset(kind))
    declared, bound = open_graph(folder, weights=False), open_graph(folder)
    assert [(w.role, w.layer, w.shape) for w in declared.weights()] == [
        (w.role, w.layer, w.shape) for w in bound.weights()
    ]
    assert declared.n_parameters == bound.n_parameters
    assert len(declare(bound.config)) == len(list(bound.weights()))
    with refused("has no data"):
        declared[Role.EMBED].read()


def test_names_of_models(tmp_path: Path) -> None:
    snapshot = tmp_path / "models--LiquidAI--LFM2-350M" / "snapshots" / "0123abc"
    assert open_graph(make_checkpoint(snapshot), weights=False).name == "LFM2-350M"
    assert open_graph(make_checkpoint(tmp_path / "mine"), weights=False).name == "mine"
    assert open_graph(tmp_path / "mine", name="other", weights=False).name == "other"
