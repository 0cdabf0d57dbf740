"""mlx-lm agrees with the graph's forward with the artifact's decoded weights: whole, cached, generated."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import BackendError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from lfm_convert.targets.target import Artifact, Runner, get_target
from support.artifacts import write_artifact
from support.checkpoints import dense_25_config, dense_config, make_checkpoint, moe_config
from support.prompts import PROMPT
from support.refusals import refused

pytestmark = pytest.mark.peers

VARIANTS: dict[str, dict[str, Any]] = {
    "dense": dense_config(),
    "dense-25": dense_25_config(),
    "dense-multiplied": dense_config(block_ffn_dim_multiplier=1.5),
    "dense-bias": dense_config(conv_bias=True),
    "dense-width-4": dense_config(conv_L_cache=4),
    "dense-heads-4-1": dense_config(num_key_value_heads=1),
    "moe": moe_config(),
    "moe-scaled": moe_config(routed_scaling_factor=2.5),
    "moe-not-normalised": moe_config(norm_topk_prob=False),
    "moe-no-bias": moe_config(use_expert_bias=False),
}


@contextmanager
def running(artifact: Artifact) -> Iterator[Runner]:
    with closing(get_target("mlx").run(artifact, threads=1)) as runner:
        yield runner


def decoded_logits(graph: WeightGraph, artifact: Artifact) -> np.ndarray:
    return Forward(graph.with_weights(get_target("mlx").read(artifact))).prefill([PROMPT])[0][0]


def assert_parity(graph: WeightGraph, artifact: Artifact) -> None:
    expected = decoded_logits(graph, artifact)
    with running(artifact) as runner:
        np.testing.assert_allclose(runner.logits(PROMPT), expected, rtol=0, atol=1e-4)
        runner.reset()
        steps = [runner.extend(PROMPT[:3]), runner.extend(PROMPT[3:9])]
        steps += [runner.extend([token]) for token in PROMPT[9:]]
    np.testing.assert_allclose(np.concatenate(steps), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("name", VARIANTS)
def test_every_variant(name: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", VARIANTS[name]))
    assert_parity(graph, write_artifact(graph, "mlx", "8bit", tmp_path / "out"))


@pytest.mark.parametrize("quant", [*(policy.name for policy in get_target("mlx").policies), "2bit-g32", "6bit-g128-e4"])
@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_every_quant(kind: str, quant: str, tmp_path: Path) -> None:
    graph = open_graph(bundled.path(kind))
    assert_parity(graph, write_artifact(graph, "mlx", quant, tmp_path))


def test_refined(tmp_path: Path) -> None:
    graph = open_graph(bundled.path("moe"))
    target = get_target("mlx").with_options({"refine": True})
    plan = target.plan(graph, "4bit")
    assert_parity(graph, write_artifact(graph, target, "4bit", tmp_path))
    assert plan.tensor_bytes == get_target("mlx").plan(graph, "4bit").tensor_bytes
    assert any("refined" in note for note in plan.notes)
    assert all(t.encoding.name.endswith("_refined") for t in plan.tensors if len(t.placements) > 1)


def test_swapped_weights_are_seen(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Negative control: the same comparison fails when w1 and w3 of one layer change places."""
    gate, up = (dense_graph.layers[2][role] for role in (Role.FFN_GATE, Role.FFN_UP))
    swapped = dense_graph.with_weights({(Role.FFN_GATE, 2): up, (Role.FFN_UP, 2): gate})
    artifact = write_artifact(swapped, "mlx", "bf16", tmp_path)
    with running(artifact) as runner:
        assert np.abs(runner.logits(PROMPT) - Forward(dense_graph).prefill([PROMPT])[0][0]).max() > 0.1


@pytest.mark.parametrize("quant", ["8bit", "4bit"])
def test_router_sends_tokens_to_the_same_experts(quant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlx_lm.models import switch_layers

    graph = open_graph(bundled.path("moe"))
    artifact = write_artifact(graph, "mlx", quant, tmp_path)
    chosen: list[np.ndarray] = []
    call = switch_layers.SwitchGLU.__call__

    def watched(module: Any, x: Any, indices: Any) -> Any:
        chosen.append(np.sort(np.array(indices)[0], axis=-1))
        return call(module, x, indices)

    monkeypatch.setattr(switch_layers.SwitchGLU, "__call__", watched)
    with running(artifact) as runner:
        runner.logits(PROMPT)
    forward = Forward(graph.with_weights(get_target("mlx").read(artifact)))
    forward.prefill([PROMPT])
    routings = [forward.routings[layer] for layer in sorted(forward.routings)]
    assert len(chosen) == len(routings) > 0
    for found, routing in zip(chosen, routings, strict=True):
        np.testing.assert_array_equal(found, np.sort(routing.experts, axis=-1))


@pytest.mark.parametrize("kind", ["dense", "moe"])
def test_mlx_lm_generates_the_reference_tokens(kind: str, tmp_path: Path) -> None:
    """Through `mlx_lm.load` and `mlx_lm.generate`, tokenizer and all, as users do."""
    import mlx.core as mx
    import mlx_lm

    graph = open_graph(bundled.path(kind))
    artifact = write_artifact(graph, "mlx", "8bit", tmp_path)
    prompt = graph.tokenizer.encode("The statement")
    forward = Forward(graph.with_weights(get_target("mlx").read(artifact)))
    expected = forward.generate(prompt, max_new_tokens=60, stop=graph.config.eos_token_ids)
    model, tokenizer = mlx_lm.load(str(artifact.path.parent))
    model.set_dtype(mx.float32)
    assert tokenizer.encode("The statement") == prompt
    found = [each.token for each in mlx_lm.stream_generate(model, tokenizer, prompt, max_tokens=60)]
    assert found[: len(expected)] == expected
    text = mlx_lm.generate(model, tokenizer, prompt, max_tokens=len(expected))
    assert text == tokenizer.decode([token for token in expected if token not in graph.config.eos_token_ids])


@pytest.mark.parametrize("version", ["0.31.3", "0.30.0", "0.9"])
def test_old_mlx_lm_is_refused(version: str, moe_graph: WeightGraph, tmp_path: Path, monkeypatch) -> None:
    from lfm_convert.targets.mlx import runner

    artifact = write_artifact(moe_graph, "mlx", "8bit", tmp_path)
    monkeypatch.setattr(runner.metadata, "version", lambda name: version)
    with refused(f"mlx-lm {version}", "0.32", "pip install", error=BackendError):
        get_target("mlx").run(artifact, threads=1)
