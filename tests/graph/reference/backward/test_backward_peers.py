"""The backward pass against torch's own differentiation of transformers, in float64, over every variant of the families."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.dtypes import Float32
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.backward.run import Backward
from lfm_convert.graph.reference.state import Batch, State
from lfm_convert.graph.roles import Address
from support import lfm3
from support.checkpoints import dense_25_config, dense_config, lfm3_config, make_checkpoint, moe_config
from support.safetensors_files import edit_tensors
from support.transformers_gradients import Peer, gradients_of, key_of

pytestmark = pytest.mark.peers

MAX_ERROR = 1e-4
PROMPTS = [lfm3.prompt(3), lfm3.prompt(4)[:3], lfm3.prompt(5)[:1], lfm3.prompt(6)[:31]]

LFM3 = (
    "as published",
    "without gate",
    "without sandwich",
    "window of one",
    "window longer than the prompt",
    "no convolution",
    "untied",
)
VARIANTS: dict[str, tuple[Callable[..., dict], dict[str, Any]]] = {
    "dense": (dense_config, {}),
    "untied": (dense_config, {"tie_embedding": False}),
    "biased convolution": (dense_config, {"conv_bias": True}),
    "convolution of two": (dense_config, {"conv_L_cache": 2}),
    "one query head a key": (dense_config, {"num_key_value_heads": 4}),
    "four query heads a key": (dense_config, {"num_key_value_heads": 1}),
    "other heads": (dense_25_config, {"head_dim": 48}),
    "large eps": (dense_25_config, {"norm_eps": 0.5}),
    "mixture": (moe_config, {}),
    "mixture, untied": (moe_config, {"tie_embedding": False}),
    "mixture, scaled": (moe_config, {"routed_scaling_factor": 2.5}),
    "mixture, not normed": (moe_config, {"norm_topk_prob": False}),
    "mixture without bias": (moe_config, {"use_expert_bias": False}),
    "mixture of one": (moe_config, {"num_experts_per_tok": 1}),
    "mixture of all": (moe_config, {"num_experts_per_tok": 8}),
    **{f"lfm3 {name}": (lfm3_config, lfm3.VARIANTS[name]) for name in LFM3},
    "lfm3 biased attention": (lfm3_config, {"attention_bias": True}),
    "lfm3 biased convolution": (lfm3_config, {"conv_bias": True}),
}


class Noting(Backward):
    """Keeps of every matrix, and expert, what a backward pass says of it."""

    def __init__(self, graph: WeightGraph, **options: Any) -> None:
        super().__init__(graph, **options)
        self.taken: dict[tuple[Address, int], Float32] = {}
        self.given: dict[tuple[Address, int], Float32] = {}

    def linear(self, x: Float32, weight: Weight, bias: Weight | None = None, **rows: Any) -> Float32:
        self.taken[weight.address, rows.get("expert") or 0] = x
        return super().linear(x, weight, bias, **rows)

    def pull(self, gradient: Float32, weight: Weight, **rows: Any) -> Float32:
        self.given[weight.address, rows.get("expert") or 0] = gradient.copy()
        return super().pull(gradient, weight, **rows)


def run_through(graph: WeightGraph, **options: Any) -> tuple[Noting, list[np.ndarray], Float32]:
    """The noting, the labels of each prompt, and the gradient by the embedded rows [tokens, H]."""
    run = Noting(graph, **options)
    lengths = [len(prompt) for prompt in PROMPTS]
    residuals = list(Noting(graph, **options).trace(PROMPTS))
    uniform = np.random.default_rng(1).random(len(residuals[0]))
    labels, gradient = run.turn_end(residuals[-1], uniform)
    for layer in reversed(graph.layers):
        out, pull = run.turn_layer(layer, residuals[layer.index], Batch(State(len(PROMPTS)), lengths))
        assert np.array_equal(out, residuals[layer.index + 1]), "it is the forward pass, to the bit"
        gradient = pull(gradient)
    return run, np.split(labels, np.cumsum(lengths)[:-1]), gradient * np.float32(graph.config.embedding_scale)


def largest_error(folder: Path, peer: Peer, run: Noting, embedded: Float32) -> float:
    """The largest of all matrices: of gradients by outputs, squared and summed, and of gradients by weights."""
    errors = [off(embedded, peer.embedded)]
    weights = {weight.address: weight for weight in run.graph.weights()}
    assert len({key_of(_matrix(weights[address], which)) for address, which in run.given}) == len(run.given)
    for (address, which), gradient in run.given.items():
        key = key_of(_matrix(weights[address], which))
        errors.append(off(np.square(gradient, dtype=np.float64).sum(axis=0), peer.squares[key]))
        errors.append(off(gradient.T @ run.taken[address, which], peer.by_weights[key]))
    assert len(run.given) == len(peer.squares), "every matrix that torch has multiplied with"
    return max(errors)


def _matrix(weight: Weight, which: int) -> Float32:
    n = weight.shape[-2]
    return weight.view.rows(which * n, (which + 1) * n)


def off(found: np.ndarray, expected: np.ndarray) -> float:
    """Relative to the norm of what is expected."""
    norm = float(np.linalg.norm(expected))
    return float(np.linalg.norm(found - expected)) / norm if norm else float(np.abs(found).max())


def checked(folder: Path) -> float:
    graph = open_graph(folder)
    run, labels, embedded = run_through(graph)
    hub = graph.config.family.hub_fields(graph.config)
    relabelled = {"rope_parameters": hub["rope_parameters"]} if graph.config.model_type == "lfm3" else {}
    peer = gradients_of(folder, PROMPTS, [each.tolist() for each in labels], **relabelled)
    return largest_error(folder, peer, run, embedded)


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_equal_those_of_torch(variant: str, tmp_path: Path, record_property: Callable) -> None:
    config, fields = VARIANTS[variant]
    error = checked(make_checkpoint(tmp_path, config(**fields)))
    record_property("largest relative error", error)
    print(f"{variant}: {error:.1e}")
    assert error <= MAX_ERROR


def test_another_model_has_other_gradients(tmp_path: Path) -> None:
    """Negative control: taps in the other order, which leave every shape as it is."""
    ours = make_checkpoint(tmp_path / "ours")
    theirs = make_checkpoint(tmp_path / "theirs")
    name = "model.layers.0.conv.conv.weight"
    edit_tensors(theirs / "model.safetensors", lambda t: t.update({name: reverse(t[name])}))
    run, labels, embedded = run_through(open_graph(ours))
    peer = gradients_of(theirs, PROMPTS, [each.tolist() for each in labels])
    assert largest_error(ours, peer, run, embedded) > 100 * MAX_ERROR


def reverse(tensor: Any) -> Any:
    values = np.frombuffer(tensor.data, "<u2").reshape(tensor.shape)[..., ::-1]
    return tensor._replace(data=np.ascontiguousarray(values).tobytes())
