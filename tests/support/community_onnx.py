"""ONNX graphs of dense models as others write them: names, caches and operators of onnx-community's converter and of
Liquid's first exporter, spelled out anew.

write_community(graph, folder, Style(bits=4))
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from lfm_convert.graph.blocks import Attention, ShortConv
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from onnx import TensorProto, helper, numpy_helper

MICROSOFT = "com.microsoft"
LAST = np.iinfo(np.int64).max
BLOCK = 32


@dataclass(frozen=True)
class Style:
    """How a graph is written.

    `bits` packs matrices, with zero points if `has_zeros`; `checkpoint_names` are those of Liquid's first exporter;
    `positions` turns heads by positions that are fed, not in the attention; `keeps` asks how many logits are wanted;
    `last_only` gives those of the last token whatever is asked. `theta` is a wrong one, where it is given.
    """

    bits: int | None = None
    has_zeros: bool = True
    checkpoint_names: bool = False
    positions: bool = False
    keeps: bool = False
    last_only: bool = False
    theta: float | None = None


def write_community(graph: WeightGraph, folder: Path, style: Style) -> Path:
    """Writes `onnx/model….onnx` and its data; the files beside it are the checkpoint's own."""
    path = folder / "onnx" / (f"model_q{style.bits}.onnx" if style.bits else "model.onnx")
    path.parent.mkdir(parents=True, exist_ok=True)
    for file in graph.folder.iterdir():
        if file.suffix in (".json", ".jinja") and "safetensors" not in file.name:
            (folder / file.name).write_bytes(file.read_bytes())
    proto = _Writer(graph, style).model()
    onnx.save_model(
        proto, str(path), save_as_external_data=True, location=f"{path.name}_data", size_threshold=1024
    )  # fmt: skip
    return path


def packed(rows: np.ndarray, bits: int, *, has_zeros: bool) -> list[np.ndarray]:
    """Codes, scales and zero points in blocks of 32, as onnxruntime's quantizer lays them out."""
    blocks = rows.reshape(len(rows), -1, BLOCK)
    top, middle = 2**bits - 1, 2 ** (bits - 1)
    if has_zeros:
        low, high = np.minimum(blocks.min(-1), 0), np.maximum(blocks.max(-1), 0)
        scales = np.maximum((high - low) / top, 1e-10).astype(np.float32)
        zeros = np.clip(np.rint(-low / scales), 0, top).astype(np.uint8)
    else:
        scales = np.maximum(np.abs(blocks).max(-1) / (middle - 1), 1e-10).astype(np.float32)
        zeros = np.full(scales.shape, middle, np.uint8)
    codes = np.clip(np.rint(blocks / scales[..., None]) + zeros[..., None], 0, top).astype(np.uint8)
    if bits == 4:
        codes = codes[..., 0::2] | (codes[..., 1::2] << 4)
        zeros = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
        zeros = zeros[:, 0::2] | (zeros[:, 1::2] << 4)
    return [codes, scales, zeros][: 3 if has_zeros else 2]


class _Writer:
    def __init__(self, graph: WeightGraph, style: Style) -> None:
        self.graph, self.style, self.config = graph, style, graph.config
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}
        self.inputs = [
            helper.make_tensor_value_info(name, TensorProto.INT64, ["batch_size", size])
            for name, size in (("input_ids", "sequence_length"), ("attention_mask", "total_sequence_length"))
        ]
        self.outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch_size", "n", "vocab"])]
        if style.positions:
            self._input("position_ids", TensorProto.INT64, ["batch_size", "sequence_length"])
        if style.keeps:
            self._input("num_logits_to_keep", TensorProto.INT64, [])

    def _input(self, name: str, kind: int, shape: list[Any]) -> None:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))

    def constant(self, name: str, values: Any) -> str:
        self.initializers.setdefault(name, numpy_helper.from_array(np.asarray(values), name))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(f"/model/constants/INT64/{list(values)}", np.array(values, np.int64))

    def op(self, kind: str, *inputs: str, name: str, outputs: int = 1, domain: str = "", **attributes: Any) -> str:
        found = [f"{name}/output_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, found, name=name, domain=domain, **attributes))
        return found[0]

    def view(self, role: Role, layer: int | None = None) -> np.ndarray:
        weights = self.graph.top if layer is None else self.graph.layers[layer].weights
        return weights[role].view.read()

    def matrix(self, x: str, role: Role, layer: int, path: str) -> str:
        """x times a matrix of a layer, at `attn/q_proj` below it."""
        return self.product(x, self.view(role, layer), f"/model/layers.{layer}/{path}/MatMul", role, layer)

    def product(self, x: str, rows: np.ndarray, node: str, role: Role, layer: int | None) -> str:
        name = f"{node.lstrip('/').replace('/', '.')}.weight"
        if self.style.checkpoint_names and layer is not None:
            name = self.graph.config.family.tensor_name(role, layer)
        if self.style.bits is None:
            return self.op("MatMul", x, self.constant(name, np.ascontiguousarray(rows.T)), name=node)
        parts = packed(rows, self.style.bits, has_zeros=self.style.has_zeros)
        stem = name.replace(".", "_")
        names = [
            self.constant(f"{stem}_{end}", part) for part, end in zip(parts, ("quant", "scales", "zp"), strict=False)
        ]
        return self.op(
            "MatMulNBits", x, *names, name=f"{node}_Q4", domain=MICROSOFT, K=rows.shape[1], N=rows.shape[0],
            bits=self.style.bits, block_size=BLOCK, accuracy_level=4,
        )  # fmt: skip

    def norm(self, x: str, role: Role, layer: int | None, path: str) -> str:
        gain = self.constant(path.lstrip("/").replace("/", ".") + ".weight", self.view(role, layer))
        return self.op(
            "SimplifiedLayerNormalization", x, gain, name=f"{path}/LayerNorm", epsilon=self.config.norm_eps, axis=-1
        )

    def model(self) -> Any:
        table = self.constant("model.embed_tokens.weight", self.view(Role.EMBED))
        x = self.op("Gather", table, "input_ids", name="/model/embed_tokens/Gather", axis=0)
        self._lengths()
        for layer, mixer in enumerate(self.config.mixers):
            at = f"/model/layers.{layer}"
            h = self.norm(x, Role.OPERATOR_NORM, layer, f"{at}/operator_layernorm")
            mixed = self._conv(h, mixer, layer) if isinstance(mixer, ShortConv) else self._attend(h, mixer, layer)
            x = self.op("Add", x, mixed, name=f"{at}/Add_1")
            h = self.norm(x, Role.FFN_NORM, layer, f"{at}/ffn_layernorm")
            gate = self.matrix(h, Role.FFN_GATE, layer, "mlp/gate_proj")
            up = self.matrix(h, Role.FFN_UP, layer, "mlp/up_proj")
            sigmoid = self.op("Sigmoid", gate, name=f"{at}/mlp/act_fn/Sigmoid")
            act = self.op("Mul", gate, sigmoid, name=f"{at}/mlp/act_fn/Mul")
            h = self.op("Mul", act, up, name=f"{at}/mlp/Mul")
            x = self.op("Add", x, self.matrix(h, Role.FFN_DOWN, layer, "mlp/down_proj"), name=f"{at}/Add_2")
        x = self.norm(x, Role.FINAL_NORM, None, f"/model/layers.{self.config.n_layers}/final_norm_layernorm")
        if self.style.keeps:
            first = self.op("Neg", "num_logits_to_keep", name="/model/keep/Neg")
            first = self.op("Reshape", first, self.ints(1), name="/model/keep/Reshape")
            x = self.op("Slice", x, first, self.ints(LAST), self.ints(1), name="/model/keep/Slice")
        elif self.style.last_only:
            x = self.op("Slice", x, self.ints(-1), self.ints(LAST), self.ints(1), name="/model/last/Slice")
        logits = self.product(x, self.view(Role.EMBED), "/lm_head/MatMul", Role.LM_HEAD, None)
        self.nodes.append(helper.make_node("Identity", [logits], ["logits"], name="/logits"))
        made = helper.make_graph(self.nodes, "main", self.inputs, self.outputs, list(self.initializers.values()))
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
        return helper.make_model(made, opset_imports=opsets, ir_version=10, producer_name="optimum")

    def _lengths(self) -> None:
        """What the attention wants: tokens before the last, and all tokens."""
        total = self.op("ReduceSum", "attention_mask", self.ints(1), name="/model/mask/ReduceSum", keepdims=0)
        before = self.op("Sub", total, self.ints(1), name="/model/mask/Sub")
        self.before = self.op("Cast", before, name="/model/mask/Cast", to=TensorProto.INT32)
        shape = self.op("Shape", "attention_mask", name="/model/mask/Shape")
        one = self.constant("/model/constants/INT64/1", np.array(1, np.int64))
        length = self.op("Gather", shape, one, name="/model/mask/Gather", axis=0)
        self.total = self.op("Cast", length, name="/model/mask/Cast_1", to=TensorProto.INT32)

    def _cache(self, past: str, present: str, shape: list[Any]) -> None:
        self._input(past, TensorProto.FLOAT, ["batch_size", *shape])
        self.outputs.append(helper.make_tensor_value_info(present, TensorProto.FLOAT, None))

    def _conv(self, h: str, block: ShortConv, layer: int) -> str:
        at, hidden = f"/model/layers.{layer}/conv", self.config.hidden_size
        self._cache(f"past_conv.{layer}", f"present_conv.{layer}", [hidden, block.width])
        h = self.matrix(h, Role.CONV_IN, layer, "conv/in_proj")
        h = self.op("Transpose", h, name=f"{at}/Transpose_1", perm=[0, 2, 1])
        self.op("Split", h, self.ints(hidden, hidden, hidden), name=f"{at}/Split", outputs=3, axis=1)
        b, c, x = (f"{at}/Split/output_{i}" for i in range(3))
        gated = self.op("Mul", b, x, name=f"{at}/Mul_1")
        whole = self.op("Concat", f"past_conv.{layer}", gated, name=f"{at}/Concat", axis=2)
        taps = self.constant(f"model.layers.{layer}.conv.conv.weight", self.view(Role.CONV_KERNEL, layer)[:, None])
        out = self.op("Conv", whole, taps, name=f"{at}/Conv", kernel_shape=[block.width], group=hidden)
        after = self.op("Slice", out, self.ints(1), self.ints(LAST), self.ints(2), name=f"{at}/Slice")
        kept = (self.ints(-block.width), self.ints(LAST), self.ints(2))
        self.nodes.append(
            helper.make_node("Slice", [whole, *kept], [f"present_conv.{layer}"], name=f"{at}/Slice_Cache")
        )
        y = self.op("Mul", c, after, name=f"{at}/Mul_2")
        y = self.op("Transpose", y, name=f"{at}/Transpose_2", perm=[0, 2, 1])
        return self.matrix(y, Role.CONV_OUT, layer, "conv/out_proj")

    def _rotation(self, block: Attention) -> tuple[str, str]:
        theta = self.style.theta or block.rope.theta
        pairs = np.arange(0, block.head_dim, 2, dtype=np.float64) / block.head_dim
        angles = np.outer(np.arange(2048), theta**-pairs)
        return self.constant("cos_cache", np.cos(angles, dtype=np.float64).astype(np.float32)), self.constant(
            "sin_cache", np.sin(angles).astype(np.float32)
        )

    def _attend(self, h: str, block: Attention, layer: int) -> str:
        at = f"/model/layers.{layer}/attn"
        pasts = [f"past_key_values.{layer}.{part}" for part in ("key", "value")]
        presents = [f"present.{layer}.{part}" for part in ("key", "value")]
        for past, present in zip(pasts, presents, strict=True):
            self._cache(past, present, [block.n_kv_heads, "past_sequence_length", block.head_dim])
        tables = self._rotation(block)
        turned = []
        for part, role, norm in (("q", Role.ATTN_Q, Role.Q_NORM), ("k", Role.ATTN_K, Role.K_NORM)):
            x = self.matrix(h, role, layer, f"attn/{part}_proj")
            heads = self.op("Reshape", x, self.ints(0, 0, -1, block.head_dim), name=f"{at}/{part}_norm/Reshape_1")
            heads = self.norm(heads, norm, layer, f"{at}/{part}_norm/layernorm")
            x = self.op("Reshape", heads, self.ints(0, 0, -1), name=f"{at}/{part}_norm/Reshape_2")
            if self.style.positions:
                n = block.n_heads if part == "q" else block.n_kv_heads
                x = self.op(
                    "RotaryEmbedding", x, "position_ids", *tables, name=f"{at}/{part}_rotary/RotaryEmbedding",
                    domain=MICROSOFT, num_heads=n, rotary_embedding_dim=block.head_dim,
                )  # fmt: skip
            turned.append(x)
        v = self.matrix(h, Role.ATTN_V, layer, "attn/v_proj")
        name = f"{at}/GroupQueryAttention"
        rotary = () if self.style.positions else tables
        self.nodes.append(
            helper.make_node(
                "GroupQueryAttention", [*turned, v, *pasts, self.before, self.total, *rotary],
                [f"{name}/output_0", *presents], name=name, domain=MICROSOFT, num_heads=block.n_heads,
                kv_num_heads=block.n_kv_heads, do_rotary=int(not self.style.positions),
            )
        )  # fmt: skip
        return self.matrix(f"{name}/output_0", Role.ATTN_OUT, layer, "attn/o_proj")
