"""Bugs planted in real artifacts that real runtimes run: in what a file stores, in its metadata or graph, or in the runtime.

Three ways of planting. A *mistaken checkpoint* is converted by the exporter as it is: its config, weights or tokenizer
are wrong, so that any target can have the bug. A *file* is edited after it was written. A *runtime* is patched in the
worker process, as an older release of it would be: then the artifact itself is sound.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.convert import bundled
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.targets.target import Artifact, Target, get_target
from lfm_convert.validate.gates import Part
from lfm_convert.validate.jobs import FIND_TARGET

from support.artifacts import write_artifact

_BUG = "LFM_PLANTED_BUG"
BROKEN_MLX = "support.real_bugs:broken_mlx"

Edit = Callable[[WeightGraph], WeightGraph]
# The graph as the exporter gets it, and the artifact that came of it.
Change = Callable[[WeightGraph, Path], WeightGraph]


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One bug in one artifact: how it gets there, and which gate must find it, naming what.

    `mistake` changes the checkpoint that is converted, `edit` the written artifact; `runtime` is patched; `options`
    configure the target.
    """

    bug: str
    target: str
    quant: str
    part: Part
    gate: str
    where: str
    mistake: Change | None = None
    edit: Callable[[Artifact], None] | None = None
    runtime: str = ""
    options: dict[str, Any] | None = None

    @property
    def id(self) -> str:
        return f"{self.bug} | {self.target} {self.quant}"

    @property
    def find_target(self) -> str:
        return BROKEN_MLX if self.runtime else FIND_TARGET


def base_checkpoint(folder: Path) -> WeightGraph:
    """The bundled mixture, its experts scaled by two, so that leaving the factor out shows."""
    if not folder.exists():
        shutil.copytree(bundled.path("moe"), folder)
        _configure(folder, routed_scaling_factor=2.0)
    return open_graph(folder)


def plant(planted: Planted, graph: WeightGraph, folder: Path) -> Artifact:
    """Writes the artifact with its bug, and readies the environment of worker processes."""
    source = planted.mistake(graph, folder / "mistaken") if planted.mistake else graph
    target = get_target(planted.target).with_options(planted.options or {})
    artifact = write_artifact(source, target, planted.quant, folder / "artifact")
    if planted.edit is not None:
        planted.edit(artifact)
    patch_runtime(planted.runtime)
    return artifact


def patch_runtime(bug: str) -> None:
    """Readies the environment, so that workers that look for `BROKEN_MLX` have this bug."""
    os.environ[_BUG] = bug
    support = str(Path(__file__).parents[1])
    others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path not in ("", support)]
    os.environ["PYTHONPATH"] = os.pathsep.join([support, *others])


# Mistaken checkpoints


def _configure(folder: Path, **values: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


def config(**values: Any) -> Change:
    """The checkpoint with other values in its config."""

    def change(graph: WeightGraph, folder: Path) -> WeightGraph:
        shutil.copytree(graph.folder, folder)
        _configure(folder, **values)
        return replace(open_graph(folder), name=graph.name)

    return change


def weights(arrays: Callable[[WeightGraph], dict[tuple[Role, int], np.ndarray]]) -> Change:
    """The checkpoint with other weights."""

    def change(graph: WeightGraph, folder: Path) -> WeightGraph:
        found = arrays(graph)
        return graph.with_weights({a: ArrayTensor(f"planted.{a}", np.ascontiguousarray(v)) for a, v in found.items()})

    return change


def without_a_merge(graph: WeightGraph, folder: Path) -> WeightGraph:
    """The checkpoint with its tokenizer's merge of `th` gone."""
    shutil.copytree(graph.folder, folder)
    path = folder / "tokenizer.json"
    data = json.loads(path.read_text(encoding="utf-8"))
    merges = data["model"]["merges"]
    merges.remove(next(merge for merge in merges if merge in ("t h", ["t", "h"])))
    path.write_text(json.dumps(data), encoding="utf-8")
    return replace(open_graph(folder), name=graph.name)


def other_template(graph: WeightGraph, folder: Path) -> WeightGraph:
    """The checkpoint with a chat template that forgets the line break after a message."""
    shutil.copytree(graph.folder, folder)
    path = folder / "chat_template.jinja"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("<|im_end|>\\n", "<|im_end|>"), encoding="utf-8")
    return replace(open_graph(folder), name=graph.name)


def w1_w3(graph: WeightGraph) -> dict[tuple[Role, int], np.ndarray]:
    gate, up = (graph.layers[0][role].read() for role in (Role.FFN_GATE, Role.FFN_UP))
    return {(Role.FFN_GATE, 0): up, (Role.FFN_UP, 0): gate}


def taps(graph: WeightGraph) -> dict[tuple[Role, int], np.ndarray]:
    return {(Role.CONV_KERNEL, 2): graph.layers[2][Role.CONV_KERNEL].read()[:, ::-1]}


def one_expert(graph: WeightGraph) -> dict[tuple[Role, int], np.ndarray]:
    down = graph.layers[2][Role.EXPERT_DOWN].read()
    down[[1, 3]] = down[[3, 1]]
    return {(Role.EXPERT_DOWN, 2): down}


def two_bits(graph: WeightGraph) -> dict[tuple[Role, int], np.ndarray]:
    values = graph.layers[1][Role.ATTN_OUT].read()
    blocks = values.reshape(-1, 32)
    scale = np.abs(blocks).max(axis=1, keepdims=True)
    return {(Role.ATTN_OUT, 1): (np.rint(blocks / scale) * scale).reshape(values.shape).astype(np.float32)}


# Edited ONNX graphs


def onnx_graph(edit: Callable[[Any], None]) -> Callable[[Artifact], None]:
    """An edit of the graph file; weights stay in their data files."""

    def change(artifact: Artifact) -> None:
        import onnx

        proto = onnx.load(str(artifact.path), load_external_data=False)
        before = proto.SerializeToString()
        edit(proto.graph)
        assert proto.SerializeToString() != before, "the edit found nothing to change"
        artifact.path.write_bytes(proto.SerializeToString())

    return change


def _nodes(graph: Any, op_type: str, scope: str = "") -> Iterator[Any]:
    return (node for node in list(graph.node) if node.op_type == op_type and scope in node.name)


def _bypass(node: Any) -> None:
    """The node as one that hands on its first input."""
    del node.input[1:], node.attribute[:]
    node.op_type, node.domain = "Identity", ""


def onnx_softmax(graph: Any) -> None:
    """1 / (1 + exp(-x)) becomes softmax(x), with whatever nodes the sigmoid is written."""
    import onnx

    users = {name: node for node in graph.node for name in node.input}
    for exp in _nodes(graph, "Exp", "/router"):
        negated = next(node for node in graph.node if exp.input[0] in node.output)
        last = users[users[exp.output[0]].output[0]]
        del last.input[1:], last.attribute[:]
        last.input[0], last.op_type = negated.input[0], "Softmax"
        last.attribute.append(onnx.helper.make_attribute("axis", -1))


def onnx_bias_in_weights(graph: Any) -> None:
    ranked = {node.output[1]: node.input[0] for node in _nodes(graph, "TopK", "/router")}
    for gather in _nodes(graph, "GatherElements", "/router"):
        gather.input[0] = ranked[gather.input[1]]


def onnx_interleaved(graph: Any) -> None:
    import onnx

    for node in _nodes(graph, "GroupQueryAttention"):
        node.attribute.append(onnx.helper.make_attribute("rotary_interleaved", 1))


def onnx_no_head_norm(graph: Any) -> None:
    for node in _nodes(graph, "BranchwiseRMSNorm"):
        _bypass(node)


def onnx_no_final_norm(graph: Any) -> None:
    """The node that adds the last branch to the residual stream and norms the sum does the first only."""
    for node in _nodes(graph, "SkipSimplifiedLayerNormalization", "/head"):
        del node.input[2:], node.output[1:], node.attribute[:]
        node.op_type, node.domain = "Add", ""


def onnx_stale_conv(graph: Any) -> None:
    """The past of every convolution is taken for zeros."""
    import onnx

    for node in _nodes(graph, "CausalConvWithState"):
        past = node.input[3]
        at, zeros = list(graph.node).index(node), f"{past}/zeros"
        graph.node.insert(at, onnx.helper.make_node("Sub", [past, past], [zeros], name=zeros))
        node.input[3] = zeros


def onnx_unmasked(graph: Any) -> None:
    """Padding is taken for tokens: the mask is ones wherever it is read, but for its length."""
    import onnx

    equal, ones = "attention_mask/equal", "attention_mask/ones"
    for node in graph.node:
        if node.op_type != "Shape":
            node.input[:] = [ones if name == "attention_mask" else name for name in node.input]
    make = onnx.helper.make_node
    graph.node.insert(0, make("Cast", [equal], [ones], name=ones, to=onnx.TensorProto.INT64))
    graph.node.insert(0, make("Equal", ["attention_mask"] * 2, [equal], name=equal))


# Patched mlx-lm


def broken_mlx(name: str) -> Target:
    """What a worker process calls for its target: MLX, whose runtime has the bug that the environment names."""
    _MLX_BUGS[os.environ[_BUG]]()
    return get_target(name)


def _mlx() -> Any:
    from mlx_lm.models import lfm2_moe

    return lfm2_moe


def _mlx_route(change: str) -> None:
    """The router of mlx-lm before 0.32, or one that weighs by biased scores, or one that forgets the factor."""
    import mlx.core as mx

    def call(self: Any, x: Any) -> Any:
        logits = self.gate(x)
        scores = mx.softmax(logits, axis=-1) if change == "softmax" else mx.sigmoid(logits)
        ranked = scores + self.expert_bias
        chosen = mx.argpartition(ranked, kth=-self.top_k, axis=-1)[..., -self.top_k :]
        shares = mx.take_along_axis(ranked if change == "bias" else scores, chosen, axis=-1)
        shares = shares / (mx.sum(shares, axis=-1, keepdims=True) + 1e-6)
        shares = shares * (1.0 if change == "factor" else self.routed_scaling_factor)
        return (self.switch_mlp(x, chosen) * shares[..., None]).sum(axis=-2)

    _mlx().Lfm2MoeSparseMoeBlock.__call__ = call


def _mlx_after_init(kind: str, change: Callable[[Any], None]) -> None:
    """Objects of a class of the model, changed once they are made."""
    owner = getattr(_mlx(), kind)
    make = owner.__init__

    def init(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        change(self)

    owner.__init__ = init


def _no_mlx_head_norm() -> None:
    """Norms must stay modules that hold their weight, so that the folder loads."""
    import mlx.nn as nn

    class Nothing(nn.RMSNorm):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return x

    def change(attention: Any) -> None:
        size = attention.head_dim
        attention.q_layernorm, attention.k_layernorm = Nothing(size), Nothing(size)

    _mlx_after_init("Attention", change)


def _no_mlx_final_norm() -> None:
    import mlx.nn as nn

    class Nothing(nn.RMSNorm):  # type: ignore[misc, name-defined]
        def __call__(self, x: Any) -> Any:
            return x

    def change(model: Any) -> None:
        model.embedding_norm = Nothing(model.args.hidden_size)

    _mlx_after_init("Lfm2Model", change)


def _mlx_stale_conv() -> None:
    """A chunk of several tokens starts its convolutions from zeros (transformers issue 46741 of another family)."""
    conv = _mlx().ShortConv
    call = conv.__call__

    def stale(self: Any, x: Any, mask: Any = None, cache: Any = None) -> Any:
        if cache is not None and x.shape[1] > 1:
            cache[0] = None
        return call(self, x, mask, cache)

    conv.__call__ = stale


def _mlx_shared_conv() -> None:
    """All conversations keep their convolutions in one place."""
    import mlx_lm.models.cache as caches

    model, make = _mlx().Model, _mlx().Model.make_cache
    kept: list[Any] = []

    def make_cache(self: Any) -> list[Any]:
        found = make(self)
        kept[:] = kept or found
        for cache in kept:
            if isinstance(cache, caches.ArraysCache):
                cache[0] = None
        return [old if isinstance(old, caches.ArraysCache) else new for old, new in zip(kept, found, strict=True)]

    model.make_cache = make_cache


def _mlx_interleaved() -> None:
    def change(attention: Any) -> None:
        attention.rope.traditional = True

    _mlx_after_init("Attention", change)


def _mlx_turned_keys() -> None:
    """Once a conversation has more than 256 tokens, keys are read from a position beside their values'."""
    import mlx.core as mx
    from mlx_lm.models.cache import KVCache

    update = KVCache.update_and_fetch

    def turned(self: Any, keys: Any, values: Any) -> tuple[Any, Any]:
        all_keys, all_values = update(self, keys, values)
        return (mx.roll(all_keys, 1, axis=2) if all_keys.shape[2] > 256 else all_keys), all_values

    KVCache.update_and_fetch = turned


_MLX_BUGS: dict[str, Callable[[], None]] = {
    "keys turned after 256": _mlx_turned_keys,
    "softmax": lambda: _mlx_route("softmax"),
    "bias": lambda: _mlx_route("bias"),
    "factor": lambda: _mlx_route("factor"),
    "interleaved": _mlx_interleaved,
    "no head norm": _no_mlx_head_norm,
    "no final norm": _no_mlx_final_norm,
    "stale conv": _mlx_stale_conv,
    "shared conv": _mlx_shared_conv,
}


# The table

_FLOAT = {
    "gguf": "F32", "onnx": "fp32", "mlx": "bf16", "executorch": "fp32", "coreml": "fp16",
    "compressed-tensors": "W8A16",
}  # fmt: skip
_FOUR = {
    "gguf": "Q4_0", "onnx": "q4", "mlx": "4bit", "executorch": "8da4w", "coreml": "int4",
    "compressed-tensors": "W4A16-g32",
}  # fmt: skip
_THETA = config(rope_parameters={"rope_theta": 1e4, "rope_type": "default"})


def _run(bug: str, target: str, where: str, *, quant: str = "", gate: str = "execution_kld_p50", **how: Any) -> Planted:
    return Planted(
        bug=bug, target=target, quant=quant or _FLOAT[target], part=Part.EXECUTION, gate=gate, where=where, **how
    )


def _stored(bug: str, target: str, where: str, arrays: Any) -> Planted:
    return Planted(
        bug=bug, target=target, quant=_FOUR[target], part=Part.WEIGHTS, gate="stored_row", where=where,
        mistake=weights(arrays),
    )  # fmt: skip


_SOFTMAX, _BIAS, _FACTOR = "scores experts by softmax", "expert bias is part of", "routed_scaling_factor is not applied"
_GATING = {"metadata": ("lfm2moe.expert_gating_func=1",)}


def planted_bugs(targets: tuple[str, ...] = ("gguf", "onnx", "mlx")) -> list[Planted]:
    """Every bug in every artifact of these targets that can have it."""
    rows = [
        _run("softmax router", "gguf", _SOFTMAX, options=_GATING),
        _run("softmax router", "gguf", _SOFTMAX, quant="Q4_0", options=_GATING),
        _run("softmax router", "onnx", _SOFTMAX, edit=onnx_graph(onnx_softmax)),
        _run("softmax router", "onnx", _SOFTMAX, quant="q4", edit=onnx_graph(onnx_softmax)),
        _run("softmax router", "mlx", _SOFTMAX, runtime="softmax"),
        _run("softmax router", "mlx", _SOFTMAX, quant="4bit", runtime="softmax"),
        _run("bias folded into weights", "onnx", _BIAS, edit=onnx_graph(onnx_bias_in_weights)),
        _run("bias folded into weights", "mlx", _BIAS, runtime="bias"),
        *(_run("scaling factor dropped", t, _FACTOR, mistake=config(routed_scaling_factor=1.0)) for t in _FLOAT),
        _run("scaling factor dropped", "mlx", _FACTOR, quant="4bit", runtime="factor"),
        *(_run("rope theta 1e4", t, "rope_theta is 1e4", mistake=_THETA) for t in _FLOAT),
        _run("rope theta 1e4", "gguf", "rope_theta is 1e4", options={"metadata": ("lfm2moe.rope.freq_base=10000",)}),
        _run("interleaved rope", "onnx", "rope pairs neighbours", edit=onnx_graph(onnx_interleaved)),
        _run("interleaved rope", "mlx", "rope pairs neighbours", runtime="interleaved"),
        _run("QK norm missing", "onnx", "queries and keys are not normed", edit=onnx_graph(onnx_no_head_norm)),
        _run("QK norm missing", "mlx", "queries and keys are not normed", runtime="no head norm"),
        *(_run("wrong eps", t, "norm_eps is 1e-6", mistake=config(norm_eps=1e-6)) for t in _FLOAT),
        _run("last norm skipped", "onnx", "the norm before the head is skipped", edit=onnx_graph(onnx_no_final_norm)),
        _run("last norm skipped", "mlx", "the norm before the head is skipped", runtime="no final norm"),
        *(
            Planted(
                bug="stale conv state", target=t, quant=_FOUR[t], part=Part.CACHE, gate="cache_chunked_kld",
                where="cache_chunked_kld", **how,
            )
            for t, how in (
                ("onnx", {"edit": onnx_graph(onnx_stale_conv)}), ("mlx", {"runtime": "stale conv"}),
            )
        ),
        Planted(
            bug="conversations share a state", target="mlx", quant="4bit", part=Part.CACHE,
            gate="cache_interleaved_kld", where="cache_interleaved_kld", runtime="shared conv",
        ),
        Planted(
            bug="padding read as tokens", target="onnx", quant="q4", part=Part.CACHE, gate="cache_batch_left_kld",
            where="cache_batch_left_kld", edit=onnx_graph(onnx_unmasked),
        ),
        _run(
            "keys out of order after 256 tokens", "mlx", "execution_kld_prompt", quant="4bit",
            gate="execution_kld_prompt", runtime="keys turned after 256",
        ),
        *(_stored("w1 and w3 swapped", t, "layer 0 ffn_", w1_w3) for t in _FOUR),
        *(_stored("conv taps reversed", t, "layer 2 conv_kernel", taps) for t in _FOUR),
        *(_stored("one expert swapped", t, "layer 2 expert_down, expert ", one_expert) for t in _FOUR),
        *(_stored("one tensor at 2 bits", t, "layer 1 attn_out", two_bits) for t in _FOUR),
        *(
            Planted(
                bug="a merge missing", target=t, quant=_FOUR[t], part=Part.TOKENIZER, gate="texts_encoded_otherwise",
                where="texts_encoded_otherwise", mistake=without_a_merge,
            )
            for t in _FOUR
        ),
        *(
            Planted(
                bug="chat template changed", target=t, quant=_FOUR[t], part=Part.TOKENIZER,
                gate="chats_rendered_otherwise", where="chats_rendered_otherwise", mistake=other_template,
            )
            for t in ("gguf", "onnx", "mlx")
        ),
    ]  # fmt: skip
    return [row for row in rows if row.target in targets]
