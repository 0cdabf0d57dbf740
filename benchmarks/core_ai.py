"""Core AI from the weight graph: one step of decoding as an .aimodel, executed here by Core AI's own runtime.

    python -m venv VENV
    VENV/bin/pip install coreai-core==1.0.0b3 coreai-torch==0.4.3 torch==2.13.0 numpy tokenizers threadpoolctl numba
    PYTHONPATH=.typing VENV/bin/python benchmarks/core_ai.py [--model bundled:moe …] [--tokens 72] 2>/dev/null

A spike: nothing of the project depends on Core AI, whose packages want an environment of their own. The blocks of a
graph become a torch module of one step, which is exported, converted, saved, and loaded again. Keys, values and windows
of convolutions are inputs and outputs. Integers are those of Core ML's quants (`quantize/policies/coreml.py`).

Printed of each model, quant, and type that activations have: seconds to export, convert and save, and to load; MB on
disk; ms a token; the largest difference of a logit, and mean nats, from the graph's forward with the weights as stored
(what the runtime adds); mean nats from the checkpoint's own forward (what the quant adds). Exits with 1 if a row of
fp32 or fp16 is further than 1e-3 from that forward in any logit, and says which. Those of fp16 are.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from coreai.authoring import AIModelAsset
from coreai.runtime import NDArray
from coreai_torch import TorchConverter, get_decomp_table
from coreai_torch._compression.custom_layers import constexpr_blockwise_shift_scale  # no public name has it
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.blocks import Attention, Branch, Dense, Mixture, Norm, ShortConv
from lfm_convert.graph.graph import Layer, Weight, WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import BIASES, NORMS, Role
from lfm_convert.graph.rotary import cosine, rotary_angles, sine
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.policies.coreml import POLICIES
from lfm_convert.quantize.policy import Policy, Rule
from lfm_convert.validate.metrics import position_kld
from lfm_convert.validate.prompts import encode_prompts, load_prompts
from torch import Tensor
from torch.nn.functional import silu, softmax

_MODELS = ("bundled:dense", "bundled:moe", "bundled:lfm3")
_QUANTS = {p.name: p for p in (Policy(name="fp32", class_name="f32", rules=(Rule("F32"),)), *POLICIES)}
_ROWS = (
    ("fp32", torch.float32), ("fp16", torch.float16), ("int4", torch.float32), ("int4", torch.float16),
)  # fmt: skip
_FLOATS = ("fp32", "fp16")
_LIMIT = 1e-3
_STATES = ("keys", "values", "conv")


class Constant(torch.nn.Module):
    """A weight as it is stored; called, its values in the type that it is multiplied in.

    The scales of rows in 8 bits are widened to float32: with those in float16 the runtime rounds code * scale and
    offset * scale each by itself. Floats are stored in the type that they are used in, since the converter widens
    constants while it folds them, and gets subnormal halves wrong.
    """

    def __init__(self, weight: Weight, policy: Policy, dtype: torch.dtype) -> None:
        super().__init__()
        view, encoding = weight.view, policy.choose(weight).encoding
        parts = encoding.encode(view.rows(0, view.n_rows))
        self.decoded = encoding.decode(*parts).reshape(view.shape)
        self.bits = {"coreml_int4": torch.uint4, "coreml_int8": torch.uint8}.get(encoding.name)
        if self.bits is None:
            self.register_buffer("data", torch.from_numpy(self.decoded.copy()).to(dtype))
            return
        codes, scales, offsets = parts
        if self.bits is torch.uint4:  # an element a byte: the converter packs them again
            codes, offsets = (np.stack([p & 15, p >> 4], axis=-1) for p in (codes, offsets))
        else:
            scales = scales.astype(np.float32)
            self.decoded = ((codes.astype(np.float32) - offsets) * scales).reshape(view.shape)
        self.register_buffer("data", torch.from_numpy(codes.reshape(view.shape)))
        self.register_buffer("scale", torch.from_numpy(scales.reshape(*view.shape[:-1], -1)))
        self.register_buffer("offset", torch.from_numpy(offsets.reshape(*view.shape[:-1], -1)))

    def forward(self, dtype: torch.dtype) -> Tensor:
        if self.bits is None:
            return self.data.to(dtype)
        values = constexpr_blockwise_shift_scale(self.data, self.scale, zero_point=self.offset, input_dtype=self.bits)
        return values.to(dtype)


class Step(torch.nn.Module):
    """One token [1] at a position [1] after what is remembered: logits [V], and what is remembered then.

    Shapes: keys, values [attentions, kv heads, context, head size]; conv [convolutions, width - 1, H].
    """

    def __init__(self, graph: WeightGraph, policy: Policy, dtype: torch.dtype, context: int) -> None:
        super().__init__()
        self.graph, self.dtype, self.context = graph, dtype, context
        self.constants = torch.nn.ModuleDict()
        for weight in graph.weights():
            if weight.role in BIASES - {Role.EXPERT_BIAS}:
                raise SystemExit(f"{graph.name} has biases, which this step lacks")
            stays_wide = weight.role in NORMS | {Role.ROUTER, Role.EXPERT_BIAS}
            self.constants[_key(weight)] = Constant(weight, policy, torch.float32 if stays_wide else dtype)
        self.attentions = [layer for layer in graph.layers if isinstance(layer.mixer, Attention)]
        for layer in self.attentions:
            rope = layer.mixer.rope
            if rope is None or rope.pairs_neighbours:
                raise SystemExit(f"layer {layer.index} of {graph.name} turns no halves, which this step lacks")
            angles = rotary_angles(rope, 0, context)
            table = np.stack([cosine(angles), sine(angles)]) * np.float32(rope.factor)
            self.register_buffer(f"rope_{layer.index}", torch.from_numpy(table))

    def empty(self) -> tuple[Tensor, ...]:
        """What a conversation without a token remembers."""
        block, convs = self.attentions[0].mixer, [x.mixer for x in self.graph.layers if isinstance(x.mixer, ShortConv)]
        kv = (len(self.attentions), block.n_kv_heads, self.context, block.head_dim)
        conv = (len(convs), convs[0].width - 1, self.graph.config.hidden_size)
        return tuple(torch.zeros(shape, dtype=self.dtype) for shape in (kv, kv, conv))

    def decoded(self) -> WeightGraph:
        """The graph with the weights as they are stored."""
        views = {w.address: ArrayTensor(w.view.name, self.constants[_key(w)].decoded) for w in self.graph.weights()}
        return self.graph.with_weights(views)

    def forward(
        self, token: Tensor, position: Tensor, keys: Tensor, values: Tensor, conv: Tensor
    ) -> tuple[Tensor, ...]:
        config, here = self.graph.config, torch.arange(self.context, dtype=torch.int32)
        past = {ShortConv: iter(conv), Attention: iter(zip(keys, values, strict=True))}
        kept: dict[str, list[Tensor]] = {name: [] for name in _STATES}
        self.call = SimpleNamespace(position=position, here=here, past=past, kept=kept)
        x = self.weight(self.graph.top[Role.EMBED])[token] * config.embedding_scale
        for layer in self.graph.layers:
            for branch in layer.branches:
                x = x + self.branch(branch, layer, x)
        x = self.norm(x, self.graph.top[Role.FINAL_NORM], config.final_norm)
        head = self.graph.top.get(Role.LM_HEAD, self.graph.top[Role.EMBED])
        logits = (x @ self.weight(head).T).float() * config.logit_scale
        return logits[0], *(torch.stack(self.call.kept[name]) for name in _STATES)

    def branch(self, branch: Branch, layer: Layer, x: Tensor) -> Tensor:
        if branch.norm:
            x = self.norm(x, layer.weights[branch.norm_role], branch.norm)
        x = _BLOCKS[type(branch.block)](self, branch.block, layer, x)
        if branch.post_norm:
            x = self.norm(x, layer.weights[branch.post_norm_role], branch.post_norm)
        return x * branch.scale

    def weight(self, weight: Weight, dtype: torch.dtype | None = None) -> Tensor:
        return self.constants[_key(weight)](dtype or self.dtype)

    def linear(self, x: Tensor, layer: Layer, role: Role) -> Tensor:
        return x @ self.weight(layer.weights[role]).T

    def norm(self, x: Tensor, gain: Weight, norm: Norm) -> Tensor:
        wide = x.float()
        scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + norm.eps)
        return (wide * scale * self.weight(gain, torch.float32)).to(self.dtype)

    def short_conv(self, block: ShortConv, layer: Layer, x: Tensor) -> Tensor:
        b, c, x = self.linear(x, layer, Role.CONV_IN).chunk(3, dim=-1)
        window = torch.cat([next(self.call.past[ShortConv]), b * x])
        self.call.kept["conv"].append(window[1:])
        mixed = (window * self.weight(layer.weights[Role.CONV_KERNEL]).T).sum(0, keepdim=True)
        return self.linear(c * mixed, layer, Role.CONV_OUT)

    def attention(self, block: Attention, layer: Layer, x: Tensor) -> Tensor:
        q, k, v = (
            self.linear(x, layer, role).reshape(-1, 1, block.head_dim)
            for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)
        )
        if block.qk_norm:
            q, k = (self.norm(y, layer.weights[g], block.qk_norm) for y, g in ((q, Role.Q_NORM), (k, Role.K_NORM)))
        q, k, call = self.turn(q, layer), self.turn(k, layer), self.call
        is_here = (call.here == call.position)[None, :, None]
        past = next(call.past[Attention])
        keys, values = (torch.where(is_here, new, old) for new, old in zip((k, v), past, strict=True))
        call.kept["keys"].append(keys)
        call.kept["values"].append(values)
        is_hidden = call.here > call.position
        if block.window is not None:
            is_hidden = is_hidden | (call.here <= call.position - block.window)
        scores = (q.reshape(block.n_kv_heads, -1, block.head_dim) * block.scale) @ keys.transpose(1, 2)
        shares = softmax(scores.float().masked_fill(is_hidden, -1e30), dim=-1).to(self.dtype)
        heads = (shares @ values).reshape(1, block.n_heads, block.head_dim)
        if block.is_gated:
            heads = heads * torch.sigmoid(self.linear(x, layer, Role.ATTN_GATE))[:, :, None]
        return self.linear(heads.reshape(1, -1), layer, Role.ATTN_OUT)

    def turn(self, x: Tensor, layer: Layer) -> Tensor:
        """Heads [n, 1, head size] turned to the position."""
        cos, sin = getattr(self, f"rope_{layer.index}")[:, self.call.position].to(self.dtype)
        first, second = x.chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def dense(self, block: Dense, layer: Layer, x: Tensor) -> Tensor:
        gated = silu(self.linear(x, layer, Role.FFN_GATE)) * self.linear(x, layer, Role.FFN_UP)
        return self.linear(gated, layer, Role.FFN_DOWN)

    def mixture(self, block: Mixture, layer: Layer, x: Tensor) -> Tensor:
        """The chosen experts are gathered from their stacks; who is chosen is decided in float32."""
        scores = torch.sigmoid(x.float() @ self.weight(layer.weights[Role.ROUTER], torch.float32).T)[0]
        bias = layer.weights.get(Role.EXPERT_BIAS)
        ranked = scores if bias is None else scores + self.weight(bias, torch.float32)
        chosen = torch.topk(ranked, block.top_k).indices
        shares = scores[chosen]
        if block.is_normalised:
            shares = shares / (shares.sum() + block.sum_eps)
        gate, up, down = (
            self.weight(layer.weights[role])[chosen].transpose(1, 2)
            for role in (Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN)
        )
        found = ((silu(x @ gate) * (x @ up)) @ down).float() * (shares * block.scaling)[:, None, None]
        return found.sum(0).to(self.dtype)


_BLOCKS = {ShortConv: Step.short_conv, Attention: Step.attention, Dense: Step.dense, Mixture: Step.mixture}


def _key(weight: Weight) -> str:
    return weight.role.value if weight.layer is None else f"{weight.role.value}_{weight.layer}"


def save(step: Step, path: Path) -> None:
    """Exports, converts and saves a step."""
    example = (torch.zeros(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32), *step.empty())
    with torch.no_grad():
        program = torch.export.export(step, example).run_decompositions(get_decomp_table())
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE).add_exported_program(
        program,
        input_names=["token", "position", *_STATES],
        output_names=["logits", *(f"{name}_out" for name in _STATES)],
    )
    converter.to_coreai().save_asset(path)


async def run(path: Path, tokens: list[int], states: Mapping[str, np.ndarray]) -> tuple[np.ndarray, float, float]:
    """Logits of the asset, loaded from its folder and fed one token after the other; seconds to load, and a token."""
    began = time.perf_counter()
    async with AIModelAsset.load(path).executable() as model:
        function, rows = model.load_function("main"), []
        loaded = time.perf_counter()
        for position, token in enumerate(tokens):
            inputs = {"token": np.array([token], np.int32), "position": np.array([position], np.int32), **states}
            found = await function({name: NDArray(values) for name, values in inputs.items()})
            rows.append(found["logits"].numpy().copy())
            states = {name: found[f"{name}_out"].numpy().copy() for name in _STATES}
        return np.stack(rows), loaded - began, (time.perf_counter() - loaded) / len(tokens)


def measure(graph: WeightGraph, tokens: list[int], quant: str, dtype: torch.dtype, path: Path) -> float:
    """Prints a row; returns the largest difference."""
    step = Step(graph, _QUANTS[quant], dtype, context=len(tokens)).eval()
    began = time.perf_counter()
    save(step, path)
    seconds = time.perf_counter() - began
    states = dict(zip(_STATES, (state.numpy() for state in step.empty()), strict=True))
    logits, load, each = asyncio.run(run(path, tokens, states))
    own, plain = (Forward(g).lazy_logits([tokens])[0][:] for g in (step.decoded(), graph))
    difference = float(np.abs(logits - own).max())
    n_bytes = sum(file.stat().st_size for file in path.iterdir())
    print(
        f"{graph.name:14} {quant:5} {str(dtype).removeprefix('torch.'):8} {seconds:8.1f} {load:6.2f}"
        + f" {n_bytes / 1e6:7.2f} {1e3 * each:7.1f} {difference:9.1e}"
        + f" {position_kld(own, logits).mean():9.1e} {position_kld(plain, logits).mean():9.1e}",
        flush=True,
    )
    return difference


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--tokens", type=int, default=72)
    arguments = parser.parse_args()
    print(
        f"{'model':14} {'quant':5} {'computed':8} {'converts':>8} {'loads':>6} {'MB':>7} {'ms':>7}"
        + f" {'max':>9} {'nats':>9} {'of quant':>9}"
    )
    failed = []
    with tempfile.TemporaryDirectory() as scratch:
        for name in arguments.model or _MODELS:
            graph = open_model(name)
            vocab_size = graph.config.vocab_size
            prompts = encode_prompts(load_prompts(), graph.tokenizer, graph.assets, vocab_size=vocab_size)
            tokens = list(max((p.token_ids for p in prompts), key=len))[: arguments.tokens]
            for quant, dtype in _ROWS:
                path = Path(scratch) / f"{graph.name}-{quant}-{dtype}.aimodel"
                difference = measure(graph, tokens, quant, dtype, path)
                if quant in _FLOATS and not difference <= _LIMIT:
                    failed.append(f"{graph.name} in {dtype}: a logit is {difference:.1e} off, above {_LIMIT}")
    if failed:
        raise SystemExit("\n".join(failed))


if __name__ == "__main__":
    main()
