"""The weights of an ONNX graph of any writer, by role, as far as the names of its nodes and initializers tell.

| written by | names |
|---|---|
| onnxruntime-genai's builder, Liquid's exporter since it wraps that | `/model/layers.3/attn/q_proj/MatMul_Q4`, `model.layers.3.attn.q_proj.MatMul.weight` |
| onnx-community's converter, Liquid's first for mixtures | the same, initializers also `model_layers_3_attn_q_proj_MatMul_weight_quant` |
| Liquid's first exporter, dense | `model.layers.3.self_attn.q_proj.weight` as in checkpoints |

Float matrices of MatMul are [in, out], those that a table shares with its head included. An operator that is none of
those below, or a name that tells no role, leaves a weight unread, which is said and not held against the file.
Source: onnxruntime-genai `src/python/py/models/builders/`; Liquid4All/onnx-export `src/liquidonnx`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.errors import InputError
from ...graph.roles import Address, Role, Trait
from ...graph.tensor import ReshapedTensor, SlicedTensor, StackedTensor, TensorView
from ..target import NotJudged
from .arrays import FLOATS, FloatTensor, PackedTensor, Packing, Stored, TransposedTensor, stored
from .check import graphs_in, nodes_of
from .foreign_names import BIASES, EXPERT, GATE_UP, NameTable, layer_of, role_of, table_of
from .qmoe import EveryOther

_EXPERTS = {Role.FFN_GATE: Role.EXPERT_GATE, Role.FFN_UP: Role.EXPERT_UP, Role.FFN_DOWN: Role.EXPERT_DOWN}
_PRODUCTS = frozenset({"MatMul", "Gemm"})
_NORMS = frozenset(
    {"SimplifiedLayerNormalization", "SkipSimplifiedLayerNormalization", "RMSNormalization", "LayerNormalization"}
)
_CONVOLUTIONS = frozenset({"Conv", "CausalConvWithState"})
# Where an operator of a mixture takes biases of its experts, which no model here has: builders write zeros.
_EXPERT_BIASES = {"MoE": (3, 5), "QMoE": (4, 7)}
# What may lie between a weight and what multiplies with it, without a change of its values.
_SEEN_THROUGH = frozenset({"Transpose", "Reshape", "Cast", "Identity", "Squeeze", "Unsqueeze"})
# Fewer elements are constants of shapes, scalars and the like.
_LEAST_WEIGHT = 1 << 10
_PAST_KEY = re.compile(r"past_key_values\.(\d+)\.key")
_PAST_CONV = re.compile(r"past_conv\.(\d+)|past\.(\d+)\.conv")


def read_foreign(path: Path, proto: Any) -> dict[Address, TensorView]:
    """The decoded weights of a graph that was loaded without its data.

    Raises: InputError for arrays that do not fit their operators, or lie beyond the end of their file; NotJudged where
    a weight is not told by names, or packed in another way than is read here.
    """
    found = _Weights(path, proto)
    missing = sorted(found.missing())
    if found.unread or missing:
        raise NotJudged(_reason(found.unread, missing), found.weights)
    return found.weights


def _reason(unread: Sequence[str], missing: Sequence[str]) -> str:
    sentences = []
    if unread:
        more = f" and {len(unread) - 3} more" if len(unread) > 3 else ""
        sentences.append(f"weights that are not read here: {', '.join(unread[:3])}{more}")
    if missing:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        sentences.append(f"no name tells which array is {', '.join(missing[:3])}{more}")
    return "; ".join(sentences)


@dataclass
class _Weights:
    """What each node of a graph says of the weights it takes."""

    path: Path
    proto: Any
    weights: dict[Address, TensorView] = field(default_factory=dict)
    unread: list[str] = field(default_factory=list)
    _experts: dict[Address, dict[int, TensorView]] = field(default_factory=dict)
    _used: set[str] = field(default_factory=set)

    def __post_init__(self) -> None:
        for node in nodes_of(self.proto.graph):
            try:
                self._node(node)
            except (InputError, ValueError) as error:
                raise InputError(f"{self.path}: node '{node.name}': {error}") from None
        for address, parts in self._experts.items():
            if sorted(parts) == list(range(len(parts))) and len({part.shape for part in parts.values()}) == 1:
                self.weights[address] = StackedTensor(parts[0].name, [parts[i] for i in sorted(parts)])
        self.unread += sorted(self._leftover())

    @cached_property
    def _initializers(self) -> dict[str, Any]:
        return {each.name: each for graph in graphs_in(self.proto.graph) for each in graph.initializer}

    @cached_property
    def _producers(self) -> dict[str, Any]:
        return {output: node for node in nodes_of(self.proto.graph) for output in node.output}

    @cached_property
    def _attention(self) -> dict[int, tuple[int, int]]:
        """Heads, and heads of keys and values, by layer."""
        found = {}
        for node in nodes_of(self.proto.graph):
            if node.op_type == "GroupQueryAttention" and (layer := layer_of(node.name)) is not None:
                found[layer] = self._number(node, "num_heads", 0), self._number(node, "kv_num_heads", 0)
        return found

    def _array(self, name: str) -> tuple[Stored | None, bool]:
        """The initializer behind a value, and whether it is seen with its axes exchanged."""
        is_turned = False
        for _ in range(8):
            if name in self._initializers:
                self._used.add(name)
                return stored(self.path, self._initializers[name]), is_turned
            node = self._producers.get(name)
            if node is None or node.op_type not in _SEEN_THROUGH:
                break
            is_turned ^= node.op_type == "Transpose"
            name = node.input[0]
        return None, False

    def _node(self, node: Any) -> None:
        kind = node.op_type
        if kind in _PRODUCTS:
            self._product(node)
        elif kind == "MatMulNBits":
            self._put(node, 1, self._packed(node, 1, (self._number(node, "N"), self._number(node, "K"))))
        elif kind in ("Gather", "GatherBlockQuantized"):
            if node.input[1] == "input_ids":
                self._table(node)
        elif kind in _NORMS:
            at = 2 if kind.startswith("Skip") else 1
            self._vector(node, at)
        elif kind in _CONVOLUTIONS:
            self._kernel(node)
        elif kind == "Add":
            for at in range(2):
                self._vector(node, at)
        elif kind in _EXPERT_BIASES:
            self._mixture(node)

    @cached_property
    def _known_names(self) -> NameTable:
        return table_of((*self._initializers, *self._producers))

    def _role(self, node: Any, name: str, array: Stored | TensorView | None) -> tuple[Any, int | None] | None:
        """The role and the layer that an initializer's name tells, or that of the node that takes it."""
        return role_of((array.name if array is not None else "", name, node.name, *node.output), self._known_names)

    def _number(self, node: Any, name: str, default: int | None = None) -> int:
        """An attribute of a node, which who calls names. Raises: InputError if it is missing, or no number."""
        found = _attributes(node).get(name, default)
        if not isinstance(found, int):
            raise InputError(f"has no number '{name}'")
        return found

    def _product(self, node: Any) -> None:
        array, is_turned = self._array(node.input[1])
        if array is None or array.kind not in FLOATS or len(array.shape) != 2:
            return
        is_turned ^= bool(_attributes(node).get("transB", 0))
        view = FloatTensor(array.name, array, array.shape) if is_turned else TransposedTensor(array.name, array)
        self._put(node, 1, view)

    def _packed(self, node: Any, at: int, shape: tuple[int, ...]) -> TensorView | None:
        """Codes at one input, scales and zero points at the two after it."""
        if len(node.input) > at + 3 and node.input[at + 3]:  # rows in another order, or what is added to them
            return None
        names = [node.input[i] if len(node.input) > i else "" for i in range(at, at + 3)]
        codes, scales, zeros = (self._array(name)[0] if name else None for name in names)
        packing = Packing(self._number(node, "bits", 4), self._number(node, "block_size"))
        return _packed(node.name, shape, packing, codes, scales, zeros, has_zeros=bool(names[2]))

    def _table(self, node: Any) -> None:
        array, is_turned = self._array(node.input[0])
        if array is None:
            return
        view: TensorView | None = None
        if node.op_type == "Gather" and array.kind in FLOATS and len(array.shape) == 2:
            view = TransposedTensor(array.name, array) if is_turned else FloatTensor(array.name, array, array.shape)
        elif node.op_type == "GatherBlockQuantized":
            view = self._packed_table(node, array)
        if view is None:
            self.unread.append(f"'{array.name}', the token table")
        else:
            self.weights[Role.EMBED, None] = view

    def _packed_table(self, node: Any, codes: Stored) -> TensorView | None:
        """Indices stand between the codes and their scales."""
        scales = self._array(node.input[2])[0]
        zeros = self._array(node.input[3])[0] if len(node.input) > 3 and node.input[3] else None
        packing = Packing(self._number(node, "bits", 4), self._number(node, "block_size", 128))
        if scales is None or len(codes.shape) < 2 or self._number(node, "gather_axis", 0) != 0:
            return None
        n_rows = codes.shape[0]
        shape = (n_rows, codes.data.size // n_rows * 8 // packing.bits)
        has_zeros = len(node.input) > 3 and bool(node.input[3])
        return _packed(node.name, shape, packing, codes, scales, zeros, has_zeros=has_zeros)

    def _vector(self, node: Any, at: int) -> None:
        array, _ = self._array(node.input[at]) if len(node.input) > at else (None, False)
        if array is None or array.kind not in FLOATS or len([n for n in array.shape if n > 1]) > 1:
            return
        address = self._role(node, node.input[at], array)
        if address is None and node.op_type in _NORMS:
            self.unread.append(f"'{array.name}'")
        if address is None or isinstance(address[0], str):
            return
        role, layer = address
        if node.op_type == "Add":
            role = BIASES.get(role, role)
        if role.trait is (Trait.BIAS if node.op_type == "Add" else Trait.NORM):
            self.weights[role, layer] = FloatTensor(array.name, array, (max(array.shape),))

    def _kernel(self, node: Any) -> None:
        """The taps of a depthwise convolution, [H, 1, K]."""
        array, _ = self._array(node.input[1])
        if array is None or array.kind not in FLOATS or len(array.shape) != 3 or array.shape[1] != 1:
            return
        layer = layer_of(f"{node.name} {array.name}")
        if layer is None:
            return
        self.weights[Role.CONV_KERNEL, layer] = FloatTensor(array.name, array, (array.shape[0], array.shape[2]))
        bias = self._array(node.input[2])[0] if len(node.input) > 2 else None
        if bias is not None and bias.kind in FLOATS and bias.shape == array.shape[:1]:
            self.weights[Role.CONV_KERNEL_BIAS, layer] = FloatTensor(bias.name, bias, bias.shape)

    def _mixture(self, node: Any) -> None:
        layer = layer_of(node.name)
        if layer is None:
            layer = layer_of(node.input[2])
        first, second = self._stacks(node)
        biases = [self._array(node.input[at])[0] for at in _EXPERT_BIASES[node.op_type] if node.input[at : at + 1]]
        is_biased = any(bias is not None and np.any(bias.data) for bias in biases)
        if layer is None or first is None or second is None or is_biased:
            self.unread.append(f"the experts of '{node.name}'")
            return
        fusion = self._number(node, "swiglu_fusion", 0)
        if fusion == 1:  # rows of gate and up by turns
            self.weights[Role.EXPERT_GATE, layer] = EveryOther(first, second=False)
            self.weights[Role.EXPERT_UP, layer] = EveryOther(first, second=True)
        elif fusion == 2:
            half = first.shape[-2] // 2
            self.weights[Role.EXPERT_GATE, layer] = SlicedTensor(first.name, first, 0, half)
            self.weights[Role.EXPERT_UP, layer] = SlicedTensor(first.name, first, half, half)
        else:
            self.unread.append(f"the experts of '{node.name}', whose gates are apart")
            return
        self.weights[Role.EXPERT_DOWN, layer] = second

    def _stacks(self, node: Any) -> tuple[TensorView | None, TensorView | None]:
        """What an operator of a mixture holds: gate and up [E, 2M, H], and down [E, H, M]."""
        if node.op_type == "MoE":
            arrays = [self._array(node.input[at])[0] for at in (2, 4)]
            views = [
                FloatTensor(a.name, a, a.shape) if a is not None and a.kind in FLOATS and len(a.shape) == 3 else None
                for a in arrays
            ]
            return views[0], views[1]
        packing = Packing(self._number(node, "expert_weight_bits", 4), self._number(node, "block_size", 0))
        if self._number(node, "weights_prepacked", 0) == 1:
            return None, None
        found = []
        for at, zeros_at in ((2, 11), (5, 12)):
            codes, scales = self._array(node.input[at])[0], self._array(node.input[at + 1])[0]
            has_zeros = len(node.input) > zeros_at and bool(node.input[zeros_at])
            zeros = self._array(node.input[zeros_at])[0] if has_zeros else None
            shape = () if codes is None else (*codes.shape[:2], codes.shape[-1] * 8 // packing.bits)
            view = _packed(node.name, shape, packing, codes, scales, zeros, has_zeros=has_zeros)
            found.append(view if len(shape) == 3 else None)
        return found[0], found[1]

    def _put(self, node: Any, at: int, view: TensorView | None) -> None:
        """A matrix under the role that names tell."""
        array = self._initializers.get(node.input[at])
        name = array.name if array is not None else node.input[at]
        address = self._role(node, node.input[at], view)
        if view is None:
            if address is not None or array is not None:
                self.unread.append(f"'{name}'")
            return
        if address is None and "lm_head" in f"{node.name} {name} {view.name}":
            self.weights[Role.LM_HEAD, None] = view
            return
        if address is None:
            self.unread.append(f"'{name}'")
            return
        role, layer = address
        expert = EXPERT.search(f"{node.name} {name} ")
        if isinstance(role, str):
            for each, rows in self._cut(role, layer, view):
                self.weights[each, layer] = rows
        elif expert is not None and role in _EXPERTS:
            self._experts.setdefault((_EXPERTS[role], layer), {})[int(expert[1])] = view
        elif role.trait in (Trait.MATRIX, Trait.ROUTER):
            self.weights[role, layer] = view

    def _cut(self, role: str, layer: int | None, view: TensorView) -> Iterator[tuple[Role, TensorView]]:
        """The weights that lie in one matrix on top of each other."""
        if role == GATE_UP:
            half = view.shape[0] // 2
            yield Role.FFN_GATE, SlicedTensor(view.name, view, 0, half)
            yield Role.FFN_UP, SlicedTensor(view.name, view, half, half)
            return
        n_heads, n_kv_heads = self._attention.get(-1 if layer is None else layer, (0, 0))
        head, rest = divmod(view.shape[0], n_heads + 2 * n_kv_heads) if n_heads else (0, 1)
        if rest:
            self.unread.append(f"'{view.name}'")
            return
        start = 0
        for each, count in ((Role.ATTN_Q, n_heads), (Role.ATTN_K, n_kv_heads), (Role.ATTN_V, n_kv_heads)):
            yield each, SlicedTensor(view.name, view, start, count * head)
            start += count * head

    def _leftover(self) -> Iterator[str]:
        """Initializers as large as weights that no operator above took; tables of a rotation are known to be none."""
        for name, each in self._initializers.items():
            size = 1
            for axis in each.dims:
                size *= axis
            is_rotary = re.search(r"cos|sin|rotary|inv_freq", name)
            if name not in self._used and size >= _LEAST_WEIGHT and each.data_type in (*FLOATS, 2, 3) and not is_rotary:
                yield f"'{name}'"

    def missing(self) -> Iterator[str]:
        """What a layer of its kind, as the caches tell it, must have and was not found."""
        names = [each.name for each in self.proto.graph.input]
        for name in names:
            conv, attention = _PAST_CONV.fullmatch(name), _PAST_KEY.fullmatch(name)
            if conv:
                yield from self._lacking(int(conv[1] or conv[2]), (Role.CONV_IN, Role.CONV_KERNEL, Role.CONV_OUT))
            elif attention:
                roles = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V, Role.ATTN_OUT)
                yield from self._lacking(int(attention[1]), roles)
        yield from (role.value for role in (Role.EMBED, Role.FINAL_NORM) if (role, None) not in self.weights)

    def _lacking(self, layer: int, roles: Sequence[Role]) -> Iterator[str]:
        is_mixture = (Role.ROUTER, layer) in self.weights or (Role.EXPERT_GATE, layer) in self.weights
        dense = (Role.FFN_GATE, Role.FFN_UP, Role.FFN_DOWN)
        experts = (Role.ROUTER, Role.EXPERT_GATE, Role.EXPERT_UP, Role.EXPERT_DOWN)
        for role in (Role.OPERATOR_NORM, Role.FFN_NORM, *roles, *(experts if is_mixture else dense)):
            if (role, layer) not in self.weights:
                yield f"{role.value} of layer {layer}"


def _packed(
    name: str,
    shape: tuple[int, ...],
    packing: Packing,
    codes: Stored | None,
    scales: Stored | None,
    zeros: Stored | None,
    *,
    has_zeros: bool,
) -> TensorView | None:
    """None where a part is not an initializer of a type that is read, or the zero points are asked for and not so."""
    is_known = packing.bits in (2, 4, 8) and codes is not None and scales is not None and scales.kind in FLOATS
    if not is_known or codes is None or scales is None or FLOATS & {codes.kind} or has_zeros is not (zeros is not None):
        return None
    matrix = (shape[0] * shape[1], shape[2]) if len(shape) == 3 else shape
    view = PackedTensor(name, matrix, packing, codes, scales, zeros)
    return ReshapedTensor(view, shape) if len(shape) == 3 else view


def _attributes(node: Any) -> Mapping[str, Any]:
    """Numbers and texts of a node, by name."""
    return {each.name: each.s.decode("utf-8", "replace") if each.type == 3 else each.i for each in node.attribute}
