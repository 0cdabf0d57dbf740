"""Bugs that can be planted in any model: in what is stored, in what the artifact's config says, in its tokenizer, in the
runtime.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

import numpy as np
from lfm_convert.graph.blocks import Attention, Dense, Mixture, Rope, ShortConv
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import EXPERTS, Role, Trait
from lfm_convert.graph.rotary import default_rope
from lfm_convert.graph.tensor import ArrayTensor

from support.graphs import with_mixers


@dataclass(frozen=True)
class Wrong:
    """A graph with a bug, and what a report must say of it."""

    graph: WeightGraph
    where: str


@dataclass(frozen=True)
class Bug:
    """`runtime` is one of real_bugs' patches of mlx-lm: then the artifact is sound."""

    name: str
    plant: Callable[[WeightGraph, Random, Path], Wrong]
    is_possible: Callable[[WeightGraph], bool] = lambda graph: True
    runtime: str = ""


def _stored(graph: WeightGraph, weight: Weight, values: np.ndarray) -> Wrong:
    view = ArrayTensor("planted", np.ascontiguousarray(values, np.float32))
    place = weight.role.value if weight.layer is None else f"layer {weight.layer} {weight.role.value}"
    return Wrong(graph.with_weights({(weight.role, weight.layer): view}), place)


def _some(graph: WeightGraph, rng: Random, *traits: Trait) -> Weight:
    return rng.choice([weight for weight in graph.weights() if weight.role.trait in traits])


def _groups_off(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = _some(graph, rng, Trait.MATRIX, Trait.EXPERTS)
    return _stored(graph, weight, np.roll(weight.view.read(), 32, axis=-1))


def _two_bits(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = _some(graph, rng, Trait.MATRIX, Trait.EXPERTS)
    values = weight.view.read()
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    return _stored(graph, weight, (np.rint(blocks / scale) * scale).reshape(values.shape))


def _exchanged(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    """Gate and up of one layer, of one expert where there are experts."""
    gates = [weight for weight in graph.weights() if weight.role in (Role.FFN_GATE, Role.EXPERT_GATE)]
    gate = rng.choice(gates)
    other = Role.FFN_UP if gate.role is Role.FFN_GATE else Role.EXPERT_UP
    up = next(weight for weight in graph.weights() if (weight.role, weight.layer) == (other, gate.layer))
    first, second = gate.view.read(), up.view.read()
    which = rng.randrange(len(first)) if gate.role in EXPERTS else slice(None)
    first[which], second[which] = second[which].copy(), first[which].copy()
    views = {
        (gate.role, gate.layer): ArrayTensor("planted", first),
        (up.role, up.layer): ArrayTensor("planted", second),
    }
    return Wrong(graph.with_weights(views), f"layer {gate.layer} {'expert' if gate.role in EXPERTS else 'ffn'}_")


def _experts_exchanged(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = _some(graph, rng, Trait.EXPERTS)
    values = weight.view.read()
    a, b = rng.sample(range(len(values)), 2)
    values[[a, b]] = values[[b, a]]
    return _stored(graph, weight, values)


def _tap(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = _some(graph, rng, Trait.KERNEL)
    return _stored(graph, weight, weight.view.read()[:, ::-1])


def _row(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = graph.top[Role.EMBED]
    values = weight.view.read()
    a, b = rng.sample(range(len(values)), 2)
    values[a] = values[b]
    return _stored(graph, weight, values)


def _norm(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    weight = _some(graph, rng, Trait.NORM)
    return _stored(graph, weight, weight.view.read() * np.float32(1.01))


def _rope(change: Callable[[Rope, int], Rope]) -> Callable[[Attention], Attention]:
    return lambda block: replace(block, rope=block.rope and change(block.rope, block.head_dim))


def _blocks(where: str, change: Callable[[Attention], Attention]) -> Callable[[WeightGraph, Random, Path], Wrong]:
    def plant(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
        def changed(mixer: Attention | ShortConv) -> Attention | ShortConv:
            return change(mixer) if isinstance(mixer, Attention) else mixer

        return Wrong(with_mixers(graph, changed), where)

    return plant


def _shorter(block: Attention) -> Attention:
    return replace(block, window=block.window and block.window - 1)


def _all_turned(block: Attention) -> Attention:
    is_partial = block.rope is not None and 0 in block.rope.inverse_frequencies
    return replace(block, rope=default_rope(block.rope.theta, block.head_dim)) if is_partial and block.rope else block


def _added_token(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    shutil.copytree(graph.folder, folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    token = rng.choice([token for token in data["added_tokens"] if token["id"] > 7])
    data["added_tokens"].remove(token)
    path.write_text(json.dumps(data), encoding="utf-8")
    path = folder / "tokenizer_config.json"  # which declares it too
    data = json.loads(path.read_text(encoding="utf-8"))
    del data["added_tokens_decoder"][str(token["id"])]
    path.write_text(json.dumps(data), encoding="utf-8")
    found = open_graph(folder)
    return Wrong(replace(found, name=graph.name), "texts_encoded_otherwise")


def _in_the_runtime(graph: WeightGraph, rng: Random, folder: Path) -> Wrong:
    return Wrong(graph, "execution_kld")


def _has(kind: type) -> Callable[[WeightGraph], bool]:
    return lambda graph: bool(graph.config.of_kind(kind))


def _has_window(graph: WeightGraph) -> bool:
    return any(block.window is not None for block in graph.config.of_kind(Attention).values())


BUGS = (
    Bug("scales of groups off by one", _groups_off),
    Bug("one tensor at two bits", _two_bits),
    Bug("gate and up exchanged in one place", _exchanged, lambda g: _has(Dense)(g) or _has(Mixture)(g)),
    Bug("two experts exchanged", _experts_exchanged, _has(Mixture)),
    Bug("taps of one layer reversed", _tap, _has(ShortConv)),
    Bug("one row of the embedding wrong", _row),
    Bug("one norm a hundredth off", _norm),
    Bug("rope base 1e4", _blocks("rope_theta is 1e4", _rope(lambda rope, size: default_rope(1e4, size))), lambda g: not _has_window(g)),
    Bug("rope factor ignored", _blocks("should be at rest", _all_turned), _has_window),
    Bug("window off by one", _blocks("a position too short", _shorter), _has_window),
    Bug("one added token missing", _added_token),
    Bug("keys out of order after 256 tokens", _in_the_runtime, _has(Attention), runtime="keys turned after 256"),
)  # fmt: skip
