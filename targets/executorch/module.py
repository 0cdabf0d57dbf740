"""An LFM2 model as a torch module that torch.export can trace: the graph's forward with caches inside.

What XNNPACK computes is a call of a region (`regions.py`), lowered once a kind and not once a layer; the
rest, such as caches and attention, is traced here. The caches are buffers. Keys and values are written at
the position they belong to and masked by it; the window of a short convolution has no position, so it is
taken as zeros whenever a call starts at position 0: a new conversation needs no other reset.
Shapes: tokens int64 [1, S] and the start position int64 [1] give logits float32 [1, V] of the last token.
Source: convert/model/forward.py, which this must agree with.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...convert.model.config import ModelConfig, Operator
from ...convert.model.graph import Role, WeightGraph
from .constants import Constants
from .mixture import FusedMixture, Mixture
from .regions import call_region, mean_square

Rotation = tuple[Tensor, Tensor]


class Lfm2(nn.Module):
    """The whole model. `context` is the number of positions its caches hold."""

    gain: Tensor
    inverse_frequencies: Tensor

    def __init__(self, graph: WeightGraph, constants: Constants, *, context: int) -> None:
        super().__init__()
        config = graph.config
        self.context, self.vocab_size, self.eps = context, config.vocab_size, config.norm_eps
        self.embed = Embedding(constants)
        self.blocks = nn.ModuleList()
        for layer in graph.layers:
            is_conv = layer.operator is Operator.SHORT_CONV
            self.blocks.append(
                ShortConv(config, constants, layer.index)
                if is_conv
                else Attention(config, constants, layer.index, context=context)
            )
            is_fused = layer.is_moe and constants.is_fused(layer.index)
            kind = FusedMixture if is_fused else Mixture if layer.is_moe else Dense
            self.blocks.append(kind(config, constants, layer.index))
        self.register_buffer("gain", constants.vector(Role.FINAL_NORM, None))
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inverse_frequencies", 1.0 / torch.tensor(config.rope_theta) ** exponents)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        start = input_pos[0].item()
        torch._check(start >= 0)  # type: ignore[no-untyped-call]
        torch._check(start + tokens.shape[1] <= self.context)  # type: ignore[no-untyped-call]
        positions = (input_pos + torch.arange(tokens.shape[1])).to(torch.float32)
        angles = positions[:, None, None] * self.inverse_frequencies
        rotation = torch.cos(angles), torch.sin(angles)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, input_pos, start, rotation)
        last = x[:, -1, :]
        (logits,) = call_region("head", [last, mean_square(last, self.eps), self.gain], [self.vocab_size])
        return logits


class Embedding(nn.Module):
    """The token table, float32 or in the integers of `embedding_4bit` and `embedding_byte`."""

    table: Tensor
    scales: Tensor

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.encoding, parts = constants.embedding()
        self.register_buffer("table", parts[0])
        self.register_buffer("scales", parts[1] if len(parts) > 1 else None)

    def forward(self, tokens: Tensor) -> Tensor:
        if self.encoding == "F32":
            return functional.embedding(tokens, self.table)
        integers = torch.ops.quantized_decomposed
        if self.encoding == "et_embed8":
            return integers.embedding_byte.dtype(self.table, self.scales, None, -128, 127, tokens, dtype=torch.float32)
        return integers.embedding_4bit.dtype(self.table, self.scales, None, -8, 7, tokens, dtype=torch.float32)


class ShortConv(nn.Module):
    """x + out(C * conv(B * x')), x' the third part of the projection; the last K - 1 inputs are kept."""

    gain: Tensor
    window: Tensor

    def __init__(self, config: ModelConfig, constants: Constants, layer: int) -> None:
        super().__init__()
        self.layer, self.eps = layer, config.norm_eps
        self.width, self.hidden = config.conv_width, config.hidden_size
        self.register_buffer("gain", constants.vector(Role.OPERATOR_NORM, layer))
        self.register_buffer("window", torch.zeros(1, self.width - 1, self.hidden))
        self.taps = [f"tap{k}" for k in range(self.width)]
        for name, tap in zip(self.taps, constants.vectors(Role.CONV_KERNEL, layer), strict=True):
            self.register_buffer(name, tap)
        self.biases: list[str] = []
        if config.conv_bias:
            for role in (Role.CONV_IN_BIAS, Role.CONV_KERNEL_BIAS, Role.CONV_OUT_BIAS):
                for bias in constants.vectors(role, layer):
                    self.biases.append(f"bias{len(self.biases)}")
                    self.register_buffer(self.biases[-1], bias)

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: Rotation) -> Tensor:
        biases = [getattr(self, name) for name in self.biases]
        inputs = [x, mean_square(x, self.eps), self.gain, *biases[:3]]
        gated, c = call_region(f"conv_in.{self.layer}", inputs, [self.hidden, self.hidden])
        n_past = self.width - 1
        # rows of zeros or of the window: torch.where chooses element by element, which takes ten times as long
        rows = (input_pos > 0) * n_past + torch.arange(n_past)
        past = torch.cat([torch.zeros_like(self.window), self.window], dim=1).index_select(1, rows)
        window = torch.cat([past, gated], dim=1)
        self.window.copy_(window[:, -n_past:])
        shifted = [window[:, k : k + x.shape[1]] for k in range(self.width)]
        taps = [getattr(self, name) for name in self.taps]
        kind = "conv_out_biased" if biases else "conv_out"
        (y,) = call_region(f"{kind}.{self.layer}", [x, c, *biases[3:], *shifted, *taps], [self.hidden])
        return y


class Attention(nn.Module):
    """x + grouped-query attention over a static cache [1, context, kv_heads, head_dim]."""

    gain: Tensor
    keys: Tensor
    values: Tensor

    def __init__(self, config: ModelConfig, constants: Constants, layer: int, *, context: int) -> None:
        super().__init__()
        self.layer, self.config, self.eps = layer, config, config.norm_eps
        self.register_buffer("gain", constants.vector(Role.OPERATOR_NORM, layer))
        self.gains = []
        for head, role in (("q", Role.Q_NORM), ("k", Role.K_NORM)):
            for half, gain in enumerate(constants.vectors(role, layer)):
                self.gains.append(f"{head}_gain{half}")
                self.register_buffer(self.gains[-1], gain)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, context, config.n_kv_heads, config.head_dim))

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: Rotation) -> Tensor:
        config, n = self.config, x.shape[1]
        sizes = [config.q_size, config.kv_size, config.kv_size]
        projected = call_region(f"attention_in.{self.layer}", [x, mean_square(x, self.eps), self.gain], sizes)
        q, k, v = (each.view(1, n, -1, config.head_dim) for each in projected)
        halves = [*q.chunk(2, dim=-1), *k.chunk(2, dim=-1)]
        gains = [getattr(self, name) for name in self.gains]
        inputs = [*halves, mean_square(q, self.eps), mean_square(k, self.eps), *gains, *rotation]
        q, k = call_region(f"rotate.{self.layer}", inputs, [config.head_dim] * 2, like=[0, 2])
        torch.ops.llama.update_cache(k, self.keys, start)
        torch.ops.llama.update_cache(v, self.values, start)
        attended = torch.ops.llama.custom_sdpa(q, self.keys, self.values, start, None, 0.0, True)
        (y,) = call_region(f"attention_out.{self.layer}", [x, attended.view(1, n, config.q_size)], [config.hidden_size])
        return y


class Dense(nn.Module):
    """x + down(silu(gate x') * up x'), x' the norm of x."""

    gain: Tensor

    def __init__(self, config: ModelConfig, constants: Constants, layer: int) -> None:
        super().__init__()
        self.layer, self.hidden, self.eps = layer, config.hidden_size, config.norm_eps
        self.register_buffer("gain", constants.vector(Role.FFN_NORM, layer))

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: Rotation) -> Tensor:
        (y,) = call_region(f"dense.{self.layer}", [x, mean_square(x, self.eps), self.gain], [self.hidden])
        return y
