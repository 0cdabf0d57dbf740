"""LFM3 in MLX: no mlx-lm has a class for it, ours computes what the reference does, beside the weights or here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import plan
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.families.family import MlxCan, MlxNames
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.mlx.folder import describe_folder
from lfm_convert.targets.target import Artifact, Runner, get_target
from support import lfm3
from support.artifacts import write_artifact
from support.checkpoints import lfm3_config, make_checkpoint
from support.configs import preset
from support.refusals import refused

peers = pytest.mark.peers
MAX_DIFFERENCE = 1e-4
PROMPT = lfm3.prompt(5)

VARIANTS: dict[str, dict[str, Any]] = {
    **lfm3.VARIANTS,
    "biased": {"attention_bias": True, "conv_bias": True},
}
# Where the prompt is cut: nowhere, in chunks that begin within a window and behind it, token by token.
CUTS = ((), (20, 37), (1, 2, 3, 40), tuple(range(1, len(PROMPT))))


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    config = lfm3_config(intermediate_size=256, auto_map={"AutoConfig": "configuration_lfm3.Lfm3Config"})
    return open_graph(make_checkpoint(tmp_path_factory.mktemp("lfm3") / "tiny-lfm3", config))


def decoded(graph: WeightGraph, artifact: Artifact) -> Forward:
    return Forward(graph.with_weights(get_target("mlx").read(artifact)))


def in_pieces(runner: Runner, cuts: Sequence[int]) -> np.ndarray:
    runner.reset()
    ends = zip((0, *cuts), (*cuts, len(PROMPT)), strict=True)
    return np.concatenate([runner.extend(PROMPT[low:high]) for low, high in ends])


def assert_parity(graph: WeightGraph, artifact: Artifact) -> None:
    """Whole, in chunks, by single tokens; and beside shorter prompts, padded on the left."""
    reference = decoded(graph, artifact)
    with closing(get_target("mlx").run(artifact, threads=1)) as runner:
        (expected,) = reference.prefill([PROMPT])[0]
        for cuts in CUTS:
            np.testing.assert_allclose(in_pieces(runner, cuts), expected, rtol=0, atol=MAX_DIFFERENCE)
        prompts = [PROMPT[:30], PROMPT, PROMPT[10:21]]
        for found, prompt in zip(runner.batch(prompts, "left"), prompts, strict=True):
            np.testing.assert_allclose(found, reference.prefill([prompt])[0][0], rtol=0, atol=MAX_DIFFERENCE)


@peers
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant(variant: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", lfm3_config(**VARIANTS[variant])))
    assert_parity(graph, write_artifact(graph, "mlx", "8bit", tmp_path / "out"))


@peers
@pytest.mark.parametrize("quant", ["bf16", "6bit", "4bit-g32-e6", "3bit", "mixed_4_8", "mxfp8", "mxfp4-e8", "nvfp4"])
def test_every_kind_of_quant(graph: WeightGraph, quant: str, tmp_path: Path) -> None:
    assert_parity(graph, write_artifact(graph, "mlx", quant, tmp_path))


@peers
@pytest.mark.parametrize("reading", ["as the checkpoint says", "by half the head"])
def test_the_wrong_readings_of_the_rope_differ(
    graph: WeightGraph, reading: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The comparison above fails where all pairs turn, or those of the head's first half."""
    from lfm_convert.targets.mlx import model
    from mlx_lm.models.rope_utils import initialize_rope

    def wrong(size: int, theta: float, neighbours: bool, rope: dict[str, Any]) -> Any:
        is_partial = rope["rope_type"] == "proportional"
        whole = {"rope_type": "default"}
        return initialize_rope(size // 2 if is_partial and "half" in reading else size, theta, neighbours, whole)

    artifact = write_artifact(graph, "mlx", "bf16", tmp_path)
    monkeypatch.setattr(model, "initialize_rope", wrong)
    with closing(get_target("mlx").run(artifact, threads=1)) as runner:
        difference = np.abs(runner.logits(PROMPT) - decoded(graph, artifact).prefill([PROMPT])[0][0]).max(axis=1)
    assert difference[0] <= MAX_DIFFERENCE  # of the first position, which turns by nothing
    assert difference.max() > 100 * MAX_DIFFERENCE


@peers
def test_batches_of_mlx_lm(graph: WeightGraph, tmp_path: Path) -> None:
    """As its server runs them: prompts in chunks, padded on the right, joined where they have come to tokens."""
    import mlx.core as mx
    from lfm_convert.targets.mlx.model import Model, ModelArgs
    from mlx_lm.generate import BatchGenerator
    from mlx_lm.utils import load_model

    artifact = write_artifact(graph, "mlx", "8bit", tmp_path)
    model = load_model(artifact.path.parent, get_model_classes=lambda config: (Model, ModelArgs))[0]
    model.set_dtype(mx.float32)
    prompts = [PROMPT[:30], PROMPT, PROMPT[10:21], PROMPT[3:8]]
    generator = BatchGenerator(model, max_tokens=24, prefill_step_size=16)
    found: dict[int, list[int]] = {each: [] for each in generator.insert(prompts)}
    while any(len(tokens) < 24 for tokens in found.values()):
        for each in generator.next()[1]:
            found[each.uid].append(each.token)
    reference = decoded(graph, artifact)
    assert list(found.values()) == [reference.generate(prompt, max_new_tokens=24) for prompt in prompts]


def test_arrays(graph: WeightGraph, tmp_path: Path) -> None:
    """Names are the checkpoint's; every matrix is packed, the gate and the embedding too; taps and norms are not."""
    artifact = write_artifact(graph, "mlx", "8bit", tmp_path)
    data = artifact.path.with_name("model.safetensors").read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    arrays = {name: (entry["dtype"], entry["shape"]) for name, entry in header.items() if name != "__metadata__"}
    assert arrays["model.layers.0.conv.conv.weight"] == ("BF16", [128, 7, 1])
    assert arrays["model.layers.2.self_attn.gate_proj.weight"] == ("U32", [4, 32])
    assert arrays["model.layers.4.self_attn.o_proj.scales"] == ("BF16", [128, 3])
    assert arrays["model.layers.4.self_attn.q_norm.weight"] == ("BF16", [48])
    assert arrays["model.layers.1.feed_forward.w2.weight"] == ("U32", [128, 64])
    assert arrays["model.embed_tokens.weight"] == ("U32", [512, 32])
    modules = {name.rpartition(".")[0] for name in arrays}
    floats = {module for module in modules if f"{module}.scales" not in arrays}
    assert all(module.endswith(("norm", "conv.conv")) for module in floats)
    assert len(floats) == 6 * 4 + 2 * 2 + 4 + 1  # norms of layers and heads, taps, the norm before the head


def test_biases_of_packed_matrices_are_plain(tmp_path: Path) -> None:
    """They share a module with scales, and come before the matrix in the model's order."""
    source = make_checkpoint(tmp_path / "checkpoint", lfm3_config(attention_bias=True, intermediate_size=256))
    artifact = write_artifact(open_graph(source), "mlx", "8bit", tmp_path)
    types = {entry["type"]: entry["tensors"] for entry in describe_folder(artifact.path.parent)["types"]}
    n_norms, n_taps, n_biases = 6 * 4 + 2 * 2 + 1, 4, 2 * 4
    assert types["BF16"] == n_norms + n_taps + n_biases
    assert sum(types.values()) == len(list(open_graph(source).weights()))
    assert len(get_target("mlx").read(artifact)) == sum(types.values())


def test_config(graph: WeightGraph, tmp_path: Path) -> None:
    config = json.loads(write_artifact(graph, "mlx", "8bit", tmp_path).path.read_text())
    assert config["rope_parameters"] == {
        lfm3.FULL: {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.5},
        lfm3.SLIDING: {"rope_type": "default", "rope_theta": 10000.0},
    }
    assert config["quantization"] == {"group_size": 64, "bits": 8, "mode": "affine"}
    assert config["use_attention_gate"] and config["use_sandwich_norm"] and config["sliding_window"] == 16
    assert not {"auto_map", "model_file"} & config.keys()
    assert list(config) == sorted(config)


@pytest.fixture
def with_file(graph: WeightGraph, tmp_path: Path) -> Artifact:
    return write_artifact(graph, get_target("mlx").with_options({"mlx_model_file": True}), "8bit", tmp_path)


_STOCK = """
import json, sys
import mlx.core as mx, mlx_lm
path, prompt = sys.argv[1], json.loads(sys.argv[2])
model, tokenizer = mlx_lm.load(path, trust_remote_code=json.loads(sys.argv[3]))
model.set_dtype(mx.float32)
print(json.dumps([each.token for each in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=40)]))
assert not any(name.startswith("lfm_convert") for name in sys.modules)
"""


def stock(artifact: Artifact, *, trust: bool) -> subprocess.CompletedProcess[str]:
    """mlx-lm alone, in a process of its own."""
    arguments = [str(artifact.path.parent), json.dumps(PROMPT), json.dumps(trust)]
    return subprocess.run([sys.executable, "-c", _STOCK, *arguments], capture_output=True, text=True, cwd="/")


@peers
def test_mlx_lm_runs_the_folder_with_the_file(graph: WeightGraph, with_file: Artifact) -> None:
    done = stock(with_file, trust=True)
    assert done.returncode == 0, done.stderr
    expected = decoded(graph, with_file).generate(PROMPT, max_new_tokens=40, stop=graph.config.eos_token_ids)
    assert json.loads(done.stdout) == expected
    refused = stock(with_file, trust=False)
    assert refused.returncode and "lfm3.py" in refused.stderr


@peers
def test_the_folder_without_it_waits_for_another_mlx_lm(graph: WeightGraph, tmp_path: Path) -> None:
    artifact = write_artifact(graph, "mlx", "8bit", tmp_path)
    assert "Model type lfm3 not supported" in stock(artifact, trust=True).stderr
    assert "this needs a later one" in artifact.path.with_name("README.md").read_text()
    (note,) = get_target("mlx").plan(graph, "8bit").notes
    assert "--mlx-model-file" in note


def test_what_the_file_adds(graph: WeightGraph, with_file: Artifact) -> None:
    folder = with_file.path.parent
    assert json.loads(with_file.path.read_text())["model_file"] == "lfm3.py"
    assert folder.joinpath("lfm3.py") in with_file.files
    assert "lfm_convert" not in folder.joinpath("lfm3.py").read_text()
    card = folder.joinpath("README.md").read_text()
    assert "--trust-remote-code" in card and "`lfm3.py`" in card
    assert not get_target("mlx").with_options({"mlx_model_file": True}).plan(graph, "8bit").notes


@peers
def test_our_runner_never_runs_it(with_file: Artifact) -> None:
    with_file.path.with_name("lfm3.py").write_text("raise SystemExit('run')")
    with closing(get_target("mlx").run(with_file, threads=1)) as runner:
        assert runner.logits(PROMPT[:3]).shape == (3, 512)
        assert "lfm-convert's class" in runner.backend


def test_no_file_for_a_model_that_mlx_lm_knows(dense_graph: WeightGraph) -> None:
    with refused("--mlx-model-file", "mlx-lm has a class for lfm2", error=UsageError):
        get_target("mlx").with_options({"mlx_model_file": True}).plan(dense_graph, "8bit")


def test_blocks_are_refused_by_name(graph: WeightGraph, moe_graph: WeightGraph) -> None:
    blocks = (
        "a norm after a block", "4 heads of 48 with hidden_size 128", "sliding-window attention", "gated heads",
        "rotation of part of a head",
    )  # fmt: skip
    with refused(*blocks, "choose another target", error=UsageError):
        get_target("mlx").plan(by_class_of(graph, MlxNames()), "8bit")
    with refused("a mixture of experts", error=UsageError):
        get_target("mlx").plan(by_class_of(moe_graph, MlxNames(can=set(MlxCan) - {MlxCan.MIXTURES})), "8bit")


def by_class_of(graph: WeightGraph, names: MlxNames) -> WeightGraph:
    """The graph as if another class ran it."""
    family = replace(graph.config.family, mlx=names)
    return replace(graph, config=replace(graph.config, family=family))


# Of the published shape: 8 bits in groups of 64 as published elsewhere, 4 bits and bfloat16 by arithmetic.
@pytest.mark.parametrize(("quant", "gigabytes"), [("8bit", 1.837), ("4bit", 0.973), ("bf16", 3.458)])
def test_planned_size_of_the_published_model(tmp_path: Path, quant: str, gigabytes: float) -> None:
    (tmp_path / "config.json").write_text(json.dumps(preset("lfm3-1.7b")))
    (planned,) = plan(str(tmp_path), target="mlx", quant=quant)
    assert planned.total_bytes / 1e9 == pytest.approx(gigabytes, rel=0.001)
    assert not planned.fallbacks
