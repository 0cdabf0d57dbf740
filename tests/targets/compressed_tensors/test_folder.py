"""What a folder holds: names, types and shapes of arrays, the config's schemes, shards, sizes, and what is alike."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import safetensors
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact
from support.checkpoints import dense_config, make_checkpoint, moe_config

CONFIGS = Path(__file__).parents[2] / "fixtures" / "configs"
TARGET = get_target("compressed-tensors")


def _config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def _arrays(folder: Path) -> dict[str, tuple[str, list[int]]]:
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safetensors.safe_open(path, framework="np") as file:
            found |= {
                name: (file.get_slice(name).get_dtype(), file.get_slice(name).get_shape()) for name in list(file.keys())
            }
    return found


def test_names_types_and_shapes(tmp_path: Path) -> None:
    folder = write_artifact(open_graph(bundled.path("moe")), TARGET, "W4A16-asym", tmp_path).path.parent
    arrays = _arrays(folder)
    expert = "model.layers.2.feed_forward.experts.5.w2"
    assert {name.removeprefix(expert): value for name, value in arrays.items() if name.startswith(expert)} == {
        ".weight_packed": ("I32", [256, 32]),
        ".weight_scale": ("BF16", [256, 2]),
        ".weight_zero_point": ("I32", [32, 2]),
        ".weight_shape": ("I64", [2]),
    }
    assert arrays["model.embed_tokens.weight"] == ("BF16", [1024, 256])
    assert arrays["model.layers.0.conv.conv.weight"] == ("BF16", [256, 1, 3])
    assert arrays["model.layers.2.feed_forward.gate.weight"] == ("BF16", [6, 256])
    assert arrays["model.layers.2.feed_forward.expert_bias"] == ("F32", [6])
    assert "lm_head.weight" not in arrays
    with safetensors.safe_open(folder / "model.safetensors", framework="np") as file:
        assert file.metadata() == {"format": "pt"}
        assert file.get_tensor(f"{expert}.weight_shape").tolist() == [256, 256]


def test_what_the_config_says(tmp_path: Path) -> None:
    graph = open_graph(bundled.path("moe"))
    config = _config(write_artifact(graph, TARGET, "W4A16", tmp_path).path.parent)
    quantization = config["quantization_config"]
    assert quantization["format"] == "pack-quantized" and quantization["quantization_status"] == "compressed"
    assert quantization["ignore"] == ["lm_head", *(f"model.layers.{i}.feed_forward.gate" for i in (2, 3))]
    (group,) = quantization["config_groups"].values()
    assert group["targets"] == ["Linear"] and group["input_activations"] is None
    arguments = {key: group["weights"][key] for key in ("num_bits", "type", "strategy", "group_size", "symmetric")}
    assert list(arguments.values()) == [4, "int", "group", 128, True]
    assert config["architectures"] == ["Lfm2MoeForCausalLM"] and config["tie_word_embeddings"] is True


def test_older_spellings_that_vllm_reads(tmp_path: Path) -> None:
    """Without conv_dim its class for dense LFM2 fails."""
    config = _config(write_artifact(open_graph(bundled.path("dense")), TARGET, "FP8", tmp_path).path.parent)
    older = {
        "conv_dim": 256, "block_dim": 256, "block_ff_dim": 512, "block_multiple_of": 256,
        "block_auto_adjust_ff_dim": False, "block_ffn_dim_multiplier": 1.0,
    }  # fmt: skip
    assert {key: config[key] for key in older} == older
    (group,) = config["quantization_config"]["config_groups"].values()
    assert (group["input_activations"]["strategy"], group["input_activations"]["dynamic"]) == ("token", True)
    assert group["format"] == "float-quantized"


@pytest.mark.parametrize("policy", [policy.name for policy in TARGET.policies])
def test_the_library_takes_the_config(policy: str) -> None:
    """Every scheme is valid to compressed-tensors, and of the format that it would choose itself."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import QuantizationConfig, preset_name_to_scheme

    graph = open_graph(bundled.path("moe"), weights=False)
    plan = TARGET.plan(graph, policy)
    said = json.loads(plan.details.headers["config.json"])["quantization_config"]
    found = QuantizationConfig.model_validate(said)
    (scheme,) = found.config_groups.values()
    assert scheme.format == infer_module_format(torch.nn.Linear, scheme)
    preset = preset_name_to_scheme(_preset(policy), ["Linear"])
    ours, theirs = scheme.weights.model_dump(), preset.weights.model_dump()
    ours, theirs = ({key: value for key, value in each.items() if value is not None} for each in (ours, theirs))
    differs = {key for key in ours | theirs if ours.get(key) != theirs.get(key)}
    differs -= {"observer", "observer_kwargs", "zp_dtype"}
    assert differs == ({"group_size"} if "-g" in policy else set())
    mine, its = scheme.input_activations, preset.input_activations
    assert (mine is None) == (its is None)
    if mine is not None:
        assert (mine.strategy, mine.num_bits, mine.type, mine.dynamic) == (
            its.strategy,
            its.num_bits,
            its.type,
            its.dynamic,
        )


def _preset(policy: str) -> str:
    name = policy.split("-g")[0].replace("-asym", "_ASYM")
    return "FP8_DYNAMIC" if name == "FP8" else name


@pytest.mark.parametrize("quant", ["W4A16", "W4A16-asym", "FP8_BLOCK", "NVFP4A16", "W8A8"])
def test_bytes_of_shards_and_workers_are_the_same(quant: str, tmp_path: Path) -> None:
    """One worker or three, ranges short or long, one file or several: each array has the same bytes."""
    graph = open_graph(bundled.path("moe"))
    one = write_artifact(graph, TARGET, quant, tmp_path / "one", Execution(jobs=1)).path.parent
    short = write_artifact(graph, TARGET, quant, tmp_path / "short", Execution(jobs=3, range_bytes=1 << 14)).path.parent
    assert (one / "model.safetensors").read_bytes() == (short / "model.safetensors").read_bytes()
    assert not (one / "model.safetensors.index.json").exists()
    cut = write_artifact(graph, TARGET.with_options({"max_shard_size": "500kB"}), quant, tmp_path / "cut").path.parent
    index = json.loads((cut / "model.safetensors.index.json").read_text())
    whole = _contents(one)
    assert _contents(cut) == whole and set(index["weight_map"]) == set(whole)
    assert index["metadata"]["total_size"] == sum(len(data) for data in whole.values())
    assert len(list(cut.glob("model-*-of-*.safetensors"))) > 2


def _contents(folder: Path) -> dict[str, bytes]:
    found = {}
    for path in folder.glob("*.safetensors"):
        data = path.read_bytes()
        n = int.from_bytes(data[:8], "little")
        for name, entry in json.loads(data[8 : 8 + n]).items():
            if name != "__metadata__":
                begin, end = entry["data_offsets"]
                found[name] = data[8 + n + begin : 8 + n + end]
    return found


def test_what_is_run_as_one_is_stored_alike(tmp_path: Path) -> None:
    """The down projections of these experts have rows of 96: all experts get groups of 32."""
    config = moe_config(hidden_size=256, moe_intermediate_size=96, intermediate_size=192)
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", config))
    plan = TARGET.plan(graph, "W4A16")
    used = {(t.role, t.layer): t.encoding.name for t in plan.tensors}
    experts = {
        name for (role, _), name in used.items() if role.value.startswith("expert_") and role is not Role.EXPERT_BIAS
    }
    assert experts == {"ct_int4_g32_bf16"}
    assert used[Role.FFN_DOWN, 0] == "ct_int4_g64_bf16" and used[Role.FFN_GATE, 0] == "ct_int4_g128_bf16"
    attention = {name for (role, _), name in used.items() if role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)}
    assert attention == {"ct_int4_g128_bf16"}
    reasons = [fallback.reason for fallback in plan.fallbacks]
    assert any("it is run as one with" in reason and "rows of 96" in reason for reason in reasons)
    config = json.loads(plan.details.headers["config.json"])["quantization_config"]
    targets = [group["targets"] for group in config["config_groups"].values()]
    assert targets[-1] == ["Linear"]
    assert r"re:model\.layers\.2\.feed_forward\.experts\.\d+\.w2$" in [name for each in targets for name in each]


def test_rows_that_nothing_divides_stay_and_are_ignored(tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path, dense_config(hidden_size=48)))
    plan = TARGET.plan(graph, "W4A16-g32")
    ignored = json.loads(plan.details.headers["config.json"])["quantization_config"]["ignore"]
    assert "model.layers.0.conv.in_proj" in ignored and "model.layers.0.feed_forward.w1" in ignored
    with pytest.raises(UsageError, match="--strict"):
        plan.refuse_fallbacks()


@pytest.mark.parametrize("shape", ["lfm2-8b-a1b", "lfm2.5-2.6b", "lfm3-1.7b"])
def test_plans_of_published_shapes(shape: str, tmp_path: Path) -> None:
    """No byte is read; of the usual shapes no row falls back, and the files are as large as arrays and headers."""
    (tmp_path / "config.json").write_bytes((CONFIGS / f"{shape}.json").read_bytes())
    graph = open_graph(tmp_path, weights=False)
    plan = TARGET.plan(graph, "W4A16")
    assert plan.fallbacks == ()
    weights = [file for file in plan.files if file.path.endswith(".safetensors")]
    assert sum(file.nbytes for file in weights) - plan.tensor_bytes < 3_000_000
    assert all(file.nbytes < 5_003_000_000 for file in weights)
    assert bool(plan.notes) == (shape == "lfm3-1.7b")


def test_global_scales_are_shared_by_what_is_one_product(tmp_path: Path, dense_graph: WeightGraph) -> None:
    graph = open_graph(bundled.path("moe"))
    folder = write_artifact(graph, TARGET, "NVFP4A16", tmp_path).path.parent
    contents = _contents(folder)

    def scale(module: str) -> float:
        return float(np.frombuffer(contents[f"model.layers.{module}.weight_global_scale"], "<f4")[0])

    attention = [scale(f"3.self_attn.{name}_proj") for name in "qkv"]
    assert len(set(attention)) == 1 and attention[0] != scale("3.self_attn.out_proj")
    experts = [scale(f"2.feed_forward.experts.{e}.w1") for e in range(6)]
    assert experts == [scale(f"2.feed_forward.experts.{e}.w3") for e in range(6)] and len(set(experts)) > 1
    largest = max(np.abs(graph.layers[3][role].read()).max() for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V))
    np.testing.assert_allclose(attention[0], 448 * 6 / largest, rtol=0.01)
