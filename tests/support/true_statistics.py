"""Statistics of a calibration whose gradients are torch's own: the blocks of a graph in torch, for small models."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.graph.blocks import Attention, Dense, Mixture, ShortConv
from lfm_convert.graph.graph import Layer, WeightGraph
from lfm_convert.graph.roles import Address, Role
from lfm_convert.graph.rotary import cosine, rotary_angles, sine
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.imatrix import importance_bytes


class TorchGraph:
    """A graph in float32 torch. `squares` and `gradients` are sums over tokens by weight: [slices, cols], [slices, rows]."""

    def __init__(self, graph: WeightGraph) -> None:
        import torch

        self.torch, self.graph = torch, graph
        self.values = {w.address: torch.from_numpy(w.view.read()) for w in graph.weights()}
        self.squares: dict[Address, Any] = {}
        self.gradients: dict[Address, Any] = {}
        self.counts: dict[Address, Any] = {}
        self.looked_up = torch.zeros(self.values[Role.EMBED, None].shape[0], dtype=torch.float64)

    def logits(self, ids: Sequence[int]) -> Any:
        torch, config = self.torch, self.graph.config
        tokens = torch.tensor(list(ids))
        x = self.values[Role.EMBED, None][tokens].clone().requires_grad_()
        x.register_hook(lambda g: _note(self.looked_up.index_add_, 0, tokens, g.double().square().sum(dim=1)))
        x = x * config.embedding_scale
        for layer in self.graph.layers:
            for branch in layer.branches:
                normed = self._norm(x, layer, branch.norm_role, branch.norm) if branch.norm else x
                out = getattr(self, f"_{type(branch.block).__name__.lower()}")(branch.block, layer, normed)
                if branch.post_norm:
                    out = self._norm(out, layer, branch.post_norm_role, branch.post_norm)
                x = x + branch.scale * out
        x = self._rms(x, config.final_norm.eps) * self.values[Role.FINAL_NORM, None].reshape(-1)
        head = (Role.EMBED, None) if self.graph.is_tied else (Role.LM_HEAD, None)
        return self._linear(x, head) * config.logit_scale

    def _linear(self, x: Any, address: Address, expert: int | None = None) -> Any:
        torch, matrix = self.torch, self.values[address]
        which, n = expert or 0, len(matrix) if matrix.ndim == 3 else 1
        matrix = matrix if expert is None else matrix[expert]
        out = x @ matrix.T
        for sums, width in ((self.squares, matrix.shape[1]), (self.gradients, matrix.shape[0])):
            sums.setdefault(address, torch.zeros(n, width, dtype=torch.float64))
        self.counts.setdefault(address, torch.zeros(n, dtype=torch.float64))[which] += len(x)
        self.squares[address][which] += x.detach().double().square().sum(dim=0)
        out.register_hook(lambda g: _note(self.gradients[address][which].add_, g.double().square().sum(dim=0)))
        return out

    def _of(self, layer: Layer, role: Role) -> Any:
        found = self.values.get((role, layer.index))
        return None if found is None else found.reshape(-1)

    def _biased(self, x: Any, layer: Layer, role: Role, bias: Role) -> Any:
        out, added = self._linear(x, (role, layer.index)), self._of(layer, bias)
        return out if added is None else out + added

    def _rms(self, x: Any, eps: float) -> Any:
        return x * (x.square().mean(dim=-1, keepdim=True) + eps).rsqrt()

    def _norm(self, x: Any, layer: Layer, role: Role, norm: Any) -> Any:
        return self._rms(x, norm.eps) * self._of(layer, role)

    def _shortconv(self, block: ShortConv, layer: Layer, x: Any) -> Any:
        torch = self.torch
        b, c, x = self._biased(x, layer, Role.CONV_IN, Role.CONV_IN_BIAS).chunk(3, dim=1)
        taps = self.values[Role.CONV_KERNEL, layer.index].reshape(-1, block.width)
        gated = torch.nn.functional.pad(b * x, (0, 0, block.width - 1, 0))
        mixed = sum(taps[:, k] * gated[k : k + len(x)] for k in range(block.width))
        bias = self._of(layer, Role.CONV_KERNEL_BIAS)
        return self._biased(c * (mixed if bias is None else mixed + bias), layer, Role.CONV_OUT, Role.CONV_OUT_BIAS)

    def _attention(self, block: Attention, layer: Layer, x: Any) -> Any:
        torch, n = self.torch, len(x)
        q, k, v = (
            self._biased(x, layer, Role[f"ATTN_{c}"], Role[f"ATTN_{c}_BIAS"]).reshape(n, -1, block.head_dim)
            for c in "QKV"
        )
        if block.qk_norm is not None:
            q, k = (self._norm(each, layer, role, block.qk_norm) for each, role in ((q, Role.Q_NORM), (k, Role.K_NORM)))
        if block.rope is not None:
            angles = rotary_angles(block.rope, 0, n)[:, None]
            cos, sin = (torch.from_numpy(f(angles)) * block.rope.factor for f in (cosine, sine))
            q, k = (self._turned(each, cos, sin) for each in (q, k))
        k, v = (each.repeat_interleave(block.n_heads // block.n_kv_heads, dim=1) for each in (k, v))
        distance = torch.arange(n)[:, None] - torch.arange(n)
        hidden = (distance < 0) | (distance >= (block.window or n))
        scores = torch.einsum("qhd,khd->hqk", q * block.scale, k).masked_fill(hidden, -torch.inf)
        out = torch.einsum("hqk,khd->qhd", scores.softmax(dim=-1), v)
        if block.is_gated:
            out = out * self._linear(x, (Role.ATTN_GATE, layer.index)).sigmoid()[:, :, None]
        return self._biased(out.reshape(n, -1), layer, Role.ATTN_OUT, Role.ATTN_OUT_BIAS)

    def _turned(self, x: Any, cos: Any, sin: Any) -> Any:
        first, second = x.chunk(2, dim=-1)
        return self.torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)

    def _dense(self, block: Dense, layer: Layer, x: Any) -> Any:
        gate, up = (self._linear(x, (role, layer.index)) for role in (Role.FFN_GATE, Role.FFN_UP))
        return self._linear(self.torch.nn.functional.silu(gate) * up, (Role.FFN_DOWN, layer.index))

    def _mixture(self, block: Mixture, layer: Layer, x: Any) -> Any:
        torch = self.torch
        scores = self._linear(x, (Role.ROUTER, layer.index)).sigmoid()
        bias = self._of(layer, Role.EXPERT_BIAS)
        chosen = (scores if bias is None else scores + bias).topk(block.top_k, dim=1).indices
        weights = scores.gather(1, chosen)
        if block.is_normalised:
            weights = weights / (weights.sum(dim=1, keepdim=True) + block.sum_eps)
        out = torch.zeros_like(x)
        for expert in range(block.n_experts):
            token, slot = (chosen == expert).nonzero(as_tuple=True)
            if len(token):
                rows = x[token]
                gate, up = (
                    self._linear(rows, (role, layer.index), expert) for role in (Role.EXPERT_GATE, Role.EXPERT_UP)
                )
                down = self._linear(torch.nn.functional.silu(gate) * up, (Role.EXPERT_DOWN, layer.index), expert)
                out = out.index_add(0, token, down * (weights[token, slot] * block.scaling)[:, None])
        return out


def _note(add: Any, *what: Any) -> None:
    """A hook must give nothing back: a gradient that it gives takes the place of the one it was given."""
    add(*what)


def measure(graph: WeightGraph, chunks: Sequence[Sequence[int]], *, seed: int = 0) -> TorchGraph:
    """Runs chunks and takes the gradients of the losses of labels drawn from the model's own distribution."""
    import torch

    torch.set_num_threads(1)  # many that wait for each other take far longer on a busy machine
    torch.manual_seed(seed)
    model = TorchGraph(graph)
    for chunk in chunks:
        logits = model.logits(chunk)
        labels = torch.multinomial(logits.detach().softmax(dim=1), 1)[:, 0]
        torch.nn.functional.cross_entropy(logits, labels, reduction="sum").backward()
    return model


def write_statistics(graph: WeightGraph, chunks: Sequence[Sequence[int]], folder: Path, *, seed: int = 0) -> Path:
    """A folder of statistics, as `open_statistics` reads it. A table's rows count what is looked up of them, too."""
    model = measure(graph, chunks, seed=seed)
    folder.mkdir(parents=True, exist_ok=True)
    table = (Role.EMBED, None)
    if table in model.gradients:
        model.gradients[table][0] += model.looked_up / (model.squares[table][0] / model.counts[table]).sum()
    else:
        model.gradients[table] = model.looked_up[None] / graph.config.hidden_size
    uses: dict[str, Use] = defaultdict()
    for address, sums in model.squares.items():
        counts = model.counts[address].numpy().astype(np.float32)
        uses[tensor_name(address, graph.config.family)] = Use(sums.numpy().astype(np.float32), counts)
    content = importance_bytes(uses, datasets=("test",), n_chunks=len(chunks), chunk_size=512)
    (folder / "imatrix.gguf").write_bytes(content)
    named = {
        role.value if layer is None else f"{role.value}.{layer}": values.numpy().astype(np.float32)
        for (role, layer), values in model.gradients.items()
    }
    np.savez(folder / "gradients.npz", **named)
    n_tokens = sum(map(len, chunks))
    said = {"n_tokens": n_tokens, "texts": [{"name": "test", "sha256": "0" * 64, "tokens": n_tokens}]}
    (folder / "statistics.json").write_text(json.dumps(said))
    return folder
