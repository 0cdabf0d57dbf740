"""Which tensors a GGUF holds: the weights of the graph, as llama.cpp's graph of the architecture multiplies with them.

| the model has | the file gets |
|---|---|
| a mixture of experts whose weights are scaled | the factor, multiplied into the experts' down projections |
| a mixture without biases, where the loader demands them | biases of zero |
| weights that the architecture keeps in one tensor | their rows, one after the other |
| queries and keys whose neighbours turn there | rows in that order, see `rows.py` |
| a rope that no key says | tensors of divisors, see `ropes.py` |

llama.cpp's own converter drops the first, and writes a file that does not load for the second.
Source: llama.cpp `src/llama-graph.cpp`, `build_moe_ffn`; for the order `conversion/base.py`, `prepare_tensors`, and
`src/llama-model-loader.h`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ...graph.blocks import Mixture
from ...graph.config import ModelConfig
from ...graph.families.family import Family
from ...graph.graph import WeightGraph
from ...graph.roles import Role
from ...graph.tensor import ArrayTensor, JoinedTensor, ScaledTensor, TensorView, ZeroTensor
from ...quantize.gguf_file.tensor_names import gguf_names, held_together, tensor_name
from .expressible import refuse_inexpressible
from .ropes import rope_tensors
from .rows import as_pairs, n_heads_moved


@dataclass(frozen=True)
class Stored:
    """A tensor of the file: a weight by its GGUF name, or a constant that follows from the blocks, which has no role.

    `others` are weights of the same layer whose rows follow those of the first.
    """

    name: str
    view: TensorView
    role: Role | None = None
    layer: int | None = None
    others: tuple[Role, ...] = ()

    @property
    def ruled_as(self) -> Role | None:
        """The role that decides its type: llama-quantize takes what is kept together for the last of it."""
        return self.others[-1] if self.others else self.role

    @property
    def size(self) -> int:
        return self.view.n_rows * self.view.n_cols


def converter_order(tensor: Stored, family: Family) -> str:
    """Sort key of `convert_hf_to_gguf.py`: constants, then a checkpoint's names as text, so layer 10 before 2."""
    return "" if tensor.role is None else family.tensor_name(tensor.role, tensor.layer)


def quantizer_order(tensor: Stored, family: Family) -> tuple[int, str]:
    """Sort key of `llama-quantize`: layers by number, names as text within one."""
    return -1 if tensor.layer is None else tensor.layer, tensor.name


def stored_tensors(graph: WeightGraph) -> tuple[Stored, ...]:
    """Every tensor of the file, those of the graph in its order.

    Raises: UsageError for what llama.cpp has no representation of.
    """
    refuse_inexpressible(graph.config)
    return (*_constants(graph.config), *_weights(graph), *_absent_biases(graph.config))


def _weights(graph: WeightGraph) -> Iterator[Stored]:
    config, views = graph.config, {weight.address: weight.view for weight in graph.weights()}
    family, mixture = config.family, config.mixture
    factor = 1.0 if mixture is None else mixture.scaling
    for (role, layer), view in views.items():
        first, *others = held_together(role, family)
        if others and role is first:
            parts = [_moved(config, each, layer, views[each, layer]) for each in (role, *others)]
            joined = JoinedTensor(tensor_name((role, layer), family), parts)
            yield Stored(joined.name, joined, role, layer, tuple(others))
        elif not others:
            is_scaled = role is Role.EXPERT_DOWN and factor != 1
            yield _stored(config, role, layer, ScaledTensor(view, factor) if is_scaled else view)


def _stored(config: ModelConfig, role: Role, layer: int | None, view: TensorView) -> Stored:
    return Stored(tensor_name((role, layer), config.family), _moved(config, role, layer, view), role, layer)


def _moved(config: ModelConfig, role: Role, layer: int | None, view: TensorView) -> TensorView:
    """Rows of queries and keys in the order in which they turn."""
    n_heads = n_heads_moved(config, role, layer)
    return view if n_heads is None else as_pairs(view, n_heads)


def _absent_biases(config: ModelConfig) -> Iterator[Stored]:
    for layer, mixture in config.of_kind(Mixture).items():
        if not mixture.has_bias and Role.EXPERT_BIAS in gguf_names(config.family).demands:
            zeros = ZeroTensor(tensor_name((Role.EXPERT_BIAS, layer), config.family), (mixture.n_experts,))
            yield _stored(config, Role.EXPERT_BIAS, layer, zeros)


def _constants(config: ModelConfig) -> Iterator[Stored]:
    for name, values in rope_tensors(config).items():
        yield Stored(name, ArrayTensor(name, values))
