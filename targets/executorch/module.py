"""An LFM2 model as a torch module that torch.export can trace: the graph's forward with caches inside.

The caches are buffers of the module. Keys and values are written at the position they belong to and masked
by it; the window of a short convolution has no position, so it is taken as zeros whenever a call starts at
position 0. A runner that begins a new conversation there needs no other reset.
Shapes: tokens int64 [1, S] and the start position int64 [1] give logits float32 [1, V] of the last token.
Source: convert/model/forward.py, which this must agree with.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from ...convert.model.config import ModelConfig, Operator
from ...convert.model.graph import Layer, Role, WeightGraph
from .constants import Constants

FeedForward = Callable[[Tensor], Tensor]


class Lfm2(nn.Module):
    """The whole model. `context` is the number of positions its caches hold."""

    def __init__(self, graph: WeightGraph, constants: Constants, *, context: int) -> None:
        super().__init__()
        config = graph.config
        self.embed = Embedding(constants)
        self.blocks = nn.ModuleList(Block(config, layer, constants, context=context) for layer in graph.layers)
        self.norm = Norm(config, constants, Role.FINAL_NORM, None)
        self.head = Linear(constants, Role.LM_HEAD, None)
        self.context = context
        exponents = torch.arange(0, config.head_dim, 2, dtype=torch.float32) / config.head_dim
        self.register_buffer("inverse_frequencies", 1.0 / torch.tensor(config.rope_theta) ** exponents)

    def forward(self, tokens: Tensor, input_pos: Tensor) -> Tensor:
        start = input_pos[0].item()
        torch._check(start >= 0)
        torch._check(start + tokens.shape[1] <= self.context)
        positions = (input_pos + torch.arange(tokens.shape[1])).to(torch.float32)
        angles = positions[:, None, None] * self.inverse_frequencies
        rotation = torch.cos(angles), torch.sin(angles)
        x = self.embed(tokens)
        for block in self.blocks:
            x = block(x, input_pos, start, rotation)
        return self.head(self.norm(x[:, -1, :]))


class Block(nn.Module):
    """One layer: norm, operator, residual, norm, feed-forward, residual."""

    def __init__(self, config: ModelConfig, layer: Layer, constants: Constants, *, context: int) -> None:
        super().__init__()
        self.operator_norm = Norm(config, constants, Role.OPERATOR_NORM, layer.index)
        self.ffn_norm = Norm(config, constants, Role.FFN_NORM, layer.index)
        if layer.operator is Operator.SHORT_CONV:
            self.operator: nn.Module = ShortConv(config, constants, layer.index)
        else:
            self.operator = Attention(config, constants, layer.index, context=context)
        self.feed_forward = constants.mixture(layer.index) if layer.is_moe else Dense(constants, layer.index)

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        x = x + self.operator(self.operator_norm(x), input_pos, start, rotation)
        return x + self.feed_forward(self.ffn_norm(x))


class Embedding(nn.Module):
    """The token table, float32 or in the integers of `embedding_4bit` and `embedding_byte`."""

    def __init__(self, constants: Constants) -> None:
        super().__init__()
        self.lookup = constants.embedding()

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lookup(tokens)


class Linear(nn.Module):
    """x times a matrix [out, in] transposed, and a bias if the model has one."""

    def __init__(self, constants: Constants, role: Role, layer: int | None, bias: Role | None = None) -> None:
        super().__init__()
        self.weight = nn.Parameter(constants.matrix(role, layer), requires_grad=False)
        self.bias: Tensor | None
        self.register_buffer("bias", constants.vector(bias, layer) if bias else None)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x, self.weight)
        return y if self.bias is None else y + self.bias


class Norm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, config: ModelConfig, constants: Constants, role: Role, layer: int | None) -> None:
        super().__init__()
        self.eps = config.norm_eps
        self.register_buffer("gain", constants.vector(role, layer))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + self.eps) * self.gain


class ShortConv(nn.Module):
    """Gated causal depthwise convolution: out(C * conv(B * x)), with the last K - 1 inputs kept."""

    def __init__(self, config: ModelConfig, constants: Constants, layer: int) -> None:
        super().__init__()
        bias = (Role.CONV_IN_BIAS, Role.CONV_OUT_BIAS) if config.conv_bias else (None, None)
        self.project_in = Linear(constants, Role.CONV_IN, layer, bias[0])
        self.project_out = Linear(constants, Role.CONV_OUT, layer, bias[1])
        self.width = config.conv_width
        for k, tap in enumerate(constants.taps(layer)):
            self.register_buffer(f"tap{k}", tap)
        self.bias: Tensor | None
        self.register_buffer("bias", constants.vector(Role.CONV_KERNEL_BIAS, layer) if config.conv_bias else None)
        self.register_buffer("window", torch.zeros(1, self.width - 1, config.hidden_size))

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        b, c, x = self.project_in(x).chunk(3, dim=-1)
        past = torch.where(input_pos > 0, self.window, 0.0)
        window = torch.cat([past, b * x], dim=1)
        self.window.copy_(window[:, -(self.width - 1) :])
        n = x.shape[1]
        mixed = self.tap0 * window[:, :n]
        for k in range(1, self.width):
            mixed = mixed + getattr(self, f"tap{k}") * window[:, k : k + n]
        if self.bias is not None:
            mixed = mixed + self.bias
        return self.project_out(c * mixed)


class Attention(nn.Module):
    """Grouped-query attention over a static cache [1, context, kv_heads, head_dim]."""

    def __init__(self, config: ModelConfig, constants: Constants, layer: int, *, context: int) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        self.q, self.k, self.v, self.out = (
            Linear(constants, role, layer) for role in (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUT)
        )
        self.q_norm = Norm(config, constants, Role.Q_NORM, layer)
        self.k_norm = Norm(config, constants, Role.K_NORM, layer)
        for name in ("keys", "values"):
            self.register_buffer(name, torch.zeros(1, context, config.n_kv_heads, config.head_dim))

    def forward(self, x: Tensor, input_pos: Tensor, start: int, rotation: tuple[Tensor, Tensor]) -> Tensor:
        n = x.shape[1]
        q, k, v = (project(x).view(1, n, -1, self.head_dim) for project in (self.q, self.k, self.v))
        q, k = rotate(self.q_norm(q), *rotation), rotate(self.k_norm(k), *rotation)
        torch.ops.llama.update_cache(k, self.keys, start)
        torch.ops.llama.update_cache(v, self.values, start)
        attended = torch.ops.llama.custom_sdpa(q, self.keys, self.values, start, None, 0.0, True)
        return self.out(attended.view(1, n, -1))


class Dense(nn.Module):
    """SwiGLU: down(silu(gate x) * up x)."""

    def __init__(self, constants: Constants, layer: int) -> None:
        super().__init__()
        self.gate, self.up, self.down = (
            Linear(constants, role, layer) for role in (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.silu(self.gate(x)) * self.up(x))


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Half-split rotation of [1, S, heads, d] by tables [S, 1, d / 2]."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
