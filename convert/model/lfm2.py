"""The LFM2 family: which tensors a config demands, and where a checkpoint keeps them.

An architecture variant is one block here. `declare` needs a config only; `bind` accounts for every
tensor of a checkpoint exactly once and reports all faults together.
Source: transformers `modeling_lfm2.py`, `modeling_lfm2_moe.py`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from ..errors import Faults
from .assets import Assets, read_assets
from .checkpoint import Checkpoint
from .config import ModelConfig, Operator, load_config
from .dtypes import WEIGHT_DTYPES, DType
from .graph import EXPERTS, Layer, Role, Weight, WeightGraph
from .tensor import DeclaredTensor, ReshapedTensor, Shape, SlicedTensor, StackedTensor, TensorView
from .tokenizer import Tokenizer, read_tokenizer

# Role -> checkpoint name. "{e}" marks one tensor per expert, stacked on a new first axis.
_TOP_NAMES = {
    Role.EMBED: "model.embed_tokens.weight",
    Role.FINAL_NORM: "model.embedding_norm.weight",
    Role.LM_HEAD: "lm_head.weight",
}
_LAYER_NAMES = {
    Role.OPERATOR_NORM: "operator_norm.weight",
    Role.CONV_IN: "conv.in_proj.weight",
    Role.CONV_IN_BIAS: "conv.in_proj.bias",
    Role.CONV_KERNEL: "conv.conv.weight",
    Role.CONV_KERNEL_BIAS: "conv.conv.bias",
    Role.CONV_OUT: "conv.out_proj.weight",
    Role.CONV_OUT_BIAS: "conv.out_proj.bias",
    Role.ATTN_Q: "self_attn.q_proj.weight",
    Role.ATTN_K: "self_attn.k_proj.weight",
    Role.ATTN_V: "self_attn.v_proj.weight",
    Role.ATTN_OUT: "self_attn.out_proj.weight",
    Role.Q_NORM: "self_attn.q_layernorm.weight",
    Role.K_NORM: "self_attn.k_layernorm.weight",
    Role.FFN_NORM: "ffn_norm.weight",
    Role.FFN_GATE: "feed_forward.w1.weight",
    Role.FFN_UP: "feed_forward.w3.weight",
    Role.FFN_DOWN: "feed_forward.w2.weight",
    Role.ROUTER: "feed_forward.gate.weight",
    Role.EXPERT_BIAS: "feed_forward.expert_bias",
    Role.EXPERT_GATE: "feed_forward.experts.{e}.w1.weight",
    Role.EXPERT_UP: "feed_forward.experts.{e}.w3.weight",
    Role.EXPERT_DOWN: "feed_forward.experts.{e}.w2.weight",
}
# The form transformers holds in memory: gate rows, then up rows, of all experts in one tensor.
_FUSED_GATE_UP = "feed_forward.experts.gate_up_proj"
_FUSED_DOWN = "feed_forward.experts.down_proj"
# What a checkpoint's tensors are in, where only its config is at hand.
_CONFIG_DTYPES = {"bfloat16": DType.BF16, "float16": DType.F16, "float32": DType.F32}
# Buffers that older checkpoints carry and the config fully determines.
_DERIVED_SUFFIXES = (".rotary_emb.inv_freq", ".pos_emb.inv_freq")


@dataclass(frozen=True)
class Slot:
    """One weight the config demands. `name` is the checkpoint's, with "{e}" for stacked experts."""

    role: Role
    layer: int | None
    name: str
    shape: Shape


def layer_prefix(layer: int) -> str:
    """`model.layers.3.`: what the names of a layer's tensors start with."""
    return f"model.layers.{layer}."


def checkpoint_name(role: Role, layer: int | None) -> str:
    """`model.layers.3.self_attn.q_proj.weight`; experts have "{e}" where each one's number stands."""
    return _TOP_NAMES[role] if layer is None else layer_prefix(layer) + _LAYER_NAMES[role]


def declare(config: ModelConfig) -> tuple[Slot, ...]:
    """Every weight of a model with this config, in model order."""
    shapes: dict[Role, Shape] = {
        Role.EMBED: (config.vocab_size, config.hidden_size),
        Role.FINAL_NORM: (config.hidden_size,),
    }
    if not config.tied:
        shapes[Role.LM_HEAD] = (config.vocab_size, config.hidden_size)
    slots = [Slot(role, None, checkpoint_name(role, None), shape) for role, shape in shapes.items()]
    for layer in range(config.n_layers):
        for role, shape in _layer_shapes(config, layer).items():
            slots.append(Slot(role, layer, checkpoint_name(role, layer), shape))
    return tuple(slots)


def _layer_shapes(config: ModelConfig, layer: int) -> dict[Role, Shape]:
    hidden = config.hidden_size
    operator = _conv_shapes(config) if config.operators[layer] is Operator.SHORT_CONV else _attention_shapes(config)
    feed_forward = _moe_shapes(config) if config.is_moe_layer(layer) else _dense_shapes(config)
    return {Role.OPERATOR_NORM: (hidden,), **operator, Role.FFN_NORM: (hidden,), **feed_forward}


def _conv_shapes(config: ModelConfig) -> dict[Role, Shape]:
    hidden, biased = config.hidden_size, config.conv_bias
    return {
        Role.CONV_IN: (3 * hidden, hidden),
        **({Role.CONV_IN_BIAS: (3 * hidden,)} if biased else {}),
        Role.CONV_KERNEL: (hidden, config.conv_width),
        **({Role.CONV_KERNEL_BIAS: (hidden,)} if biased else {}),
        Role.CONV_OUT: (hidden, hidden),
        **({Role.CONV_OUT_BIAS: (hidden,)} if biased else {}),
    }


def _attention_shapes(config: ModelConfig) -> dict[Role, Shape]:
    hidden = config.hidden_size
    return {
        Role.ATTN_Q: (config.q_size, hidden),
        Role.ATTN_K: (config.kv_size, hidden),
        Role.ATTN_V: (config.kv_size, hidden),
        Role.Q_NORM: (config.head_dim,),
        Role.K_NORM: (config.head_dim,),
        Role.ATTN_OUT: (hidden, config.q_size),
    }


def _dense_shapes(config: ModelConfig) -> dict[Role, Shape]:
    hidden, ffn = config.hidden_size, config.ffn_size
    return {Role.FFN_GATE: (ffn, hidden), Role.FFN_UP: (ffn, hidden), Role.FFN_DOWN: (hidden, ffn)}


def _moe_shapes(config: ModelConfig) -> dict[Role, Shape]:
    if config.moe is None:
        raise ValueError("a dense config has no expert layers")
    n, hidden, ffn = config.moe.n_experts, config.hidden_size, config.moe.ffn_size
    return {
        Role.ROUTER: (n, hidden),
        **({Role.EXPERT_BIAS: (n,)} if config.moe.use_expert_bias else {}),
        Role.EXPERT_GATE: (n, ffn, hidden),
        Role.EXPERT_UP: (n, ffn, hidden),
        Role.EXPERT_DOWN: (n, hidden, ffn),
    }


def open_graph(folder: Path, *, name: str | None = None, weights: bool = True) -> WeightGraph:
    """The weight graph of a checkpoint folder; of its config alone with `weights=False`.

    Raises: InputError with all faults of the config, the files, the tensors or the tokenizer.
    """
    config = load_config(folder)
    tokenizer = read_tokenizer(folder, config)
    assets = read_assets(folder)
    name = name or _model_name(folder)
    if not weights:
        return _assemble(name, folder, config, partial(_declared_view, config), tokenizer, assets, None, config.notes)
    checkpoint = Checkpoint(folder)
    config = settle_head(config, checkpoint)
    views, notes = bind(config, checkpoint)
    return _assemble(
        name, folder, config, views.__getitem__, tokenizer, assets, checkpoint,
        (*config.notes, *checkpoint.notes, *notes),
    )  # fmt: skip


def _model_name(folder: Path) -> str:
    """The folder's name; of a hub cache `models--org--name/snapshots/<hash>`, the model's."""
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.split("--")[-1]
    return folder.name or "model"


def _declared_view(config: ModelConfig, slot: Slot) -> TensorView:
    """As checkpoints are saved: all in the config's type, but for the expert biases."""
    dtype = _CONFIG_DTYPES.get(config.dtype, DType.BF16)
    return DeclaredTensor(slot.name, slot.shape, DType.F32 if slot.role is Role.EXPERT_BIAS else dtype)


def _assemble(
    name: str,
    folder: Path,
    config: ModelConfig,
    view_of: Callable[[Slot], TensorView],
    tokenizer: Tokenizer | None,
    assets: Assets,
    checkpoint: Checkpoint | None,
    notes: tuple[str, ...],
) -> WeightGraph:
    top: dict[Role, Weight] = {}
    layers: list[dict[Role, Weight]] = [{} for _ in range(config.n_layers)]
    for slot in declare(config):
        home = top if slot.layer is None else layers[slot.layer]
        home[slot.role] = Weight(slot.role, slot.layer, view_of(slot))
    return WeightGraph(
        name=name,
        folder=folder,
        config=config,
        top=top,
        layers=tuple(Layer(i, config.operators[i], config.is_moe_layer(i), w) for i, w in enumerate(layers)),
        tokenizer=tokenizer,
        assets=assets,
        checkpoint=checkpoint,
        notes=notes,
    )


def settle_head(config: ModelConfig, checkpoint: Checkpoint) -> ModelConfig:
    """The config with `tied` as the tensors have it: a head that differs from the embedding is kept."""
    head = checkpoint.tensors.get(_TOP_NAMES[Role.LM_HEAD])
    embed = checkpoint.tensors.get(_TOP_NAMES[Role.EMBED])
    if not config.tied or head is None or embed is None or embed.shape != (config.vocab_size, config.hidden_size):
        return config
    if _equal(head, embed):
        return config
    note = "the config ties head and embedding, but 'lm_head.weight' differs: both are kept"
    return replace(config, tied=False, notes=(*config.notes, note))


def bind(config: ModelConfig, checkpoint: Checkpoint) -> tuple[dict[Slot, TensorView], list[str]]:
    """Matches every slot with a tensor and every tensor with a slot.

    Returns the views by slot, and notes on what was dropped knowingly.
    Raises: InputError listing all missing, misshapen, mistyped and unexpected tensors.
    """
    binder = _Binder(checkpoint)
    views = {slot: view for slot in declare(config) if (view := binder.take(slot)) is not None}
    notes = binder.drop_redundant(config)
    binder.report_left_over()
    binder.faults.raise_if_any(str(checkpoint.folder))
    return views, notes


class _Binder:
    def __init__(self, checkpoint: Checkpoint) -> None:
        self._given = frozenset(checkpoint.tensors)
        self._left = dict(checkpoint.tensors)
        self.faults = Faults()

    def take(self, slot: Slot) -> TensorView | None:
        if slot.role in EXPERTS:
            return self._take_experts(slot)
        if slot.role is Role.CONV_KERNEL:
            hidden, width = slot.shape
            kernel = self._take(slot.name, (hidden, 1, width))
            return kernel and ReshapedTensor(kernel, slot.shape)
        return self._take(slot.name, slot.shape)

    def _take(self, name: str, shape: Shape) -> TensorView | None:
        tensor = self._left.pop(name, None)
        if tensor is None:
            self.faults.add(f"tensor '{name}' is missing (expected shape {list(shape)})")
        elif tensor.shape != shape:
            self.faults.add(f"tensor '{name}' has the wrong shape: expected {list(shape)}, found {list(tensor.shape)}")
        elif tensor.dtype not in WEIGHT_DTYPES:
            self.faults.add(f"tensor '{name}' is {tensor.dtype.value}: expected F32, F16 or BF16")
        else:
            return tensor
        return None

    def _take_experts(self, slot: Slot) -> TensorView | None:
        if slot.layer is None:
            raise ValueError("experts live in layers")
        n, out_size, in_size = slot.shape
        prefix = layer_prefix(slot.layer)
        if not self._given.isdisjoint((prefix + _FUSED_DOWN, prefix + _FUSED_GATE_UP)):
            return self._take_fused(slot, prefix)
        parts = [self._take(slot.name.format(e=e), (out_size, in_size)) for e in range(n)]
        whole = [part for part in parts if part is not None]
        return StackedTensor(slot.name.replace("{e}.", ""), whole) if len(whole) == n else None

    def _take_fused(self, slot: Slot, prefix: str) -> TensorView | None:
        n, out_size, in_size = slot.shape
        if slot.role is Role.EXPERT_DOWN:
            return self._take(prefix + _FUSED_DOWN, slot.shape)
        fused: TensorView | None = self._left.get(prefix + _FUSED_GATE_UP)
        if slot.role is Role.EXPERT_UP:  # the last of the two readers takes it off the list
            fused = self._take(prefix + _FUSED_GATE_UP, (n, 2 * out_size, in_size))
        if fused is None or fused.shape != (n, 2 * out_size, in_size):
            return None
        start = 0 if slot.role is Role.EXPERT_GATE else out_size
        return SlicedTensor(slot.name.replace("{e}.", ""), fused, start, out_size)

    def drop_redundant(self, config: ModelConfig) -> list[str]:
        """Takes off what the config makes redundant: rotary buffers, and the head when it is tied."""
        notes = []
        for name in [n for n in self._left if n.endswith(_DERIVED_SUFFIXES)]:
            del self._left[name]
            notes.append(f"tensor '{name}' is derived from the config and not used")
        head = _TOP_NAMES[Role.LM_HEAD]
        if config.tied and self._left.pop(head, None) is not None:
            notes.append(f"tensor '{head}' equals the embedding and is not stored twice")
        return notes

    def report_left_over(self) -> None:
        for name in sorted(self._left):
            self.faults.add(f"tensor '{name}' is not part of the model the config describes")


def _equal(a: TensorView, b: TensorView) -> bool:
    if a.shape != b.shape:
        return False
    step = max(1, (1 << 20) // a.n_cols)
    return all(
        np.array_equal(a.rows(i, min(i + step, a.n_rows)), b.rows(i, min(i + step, a.n_rows)))
        for i in range(0, a.n_rows, step)
    )
