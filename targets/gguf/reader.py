"""The weights of a GGUF by role, whoever wrote it.

| a file of others may hold | read as |
|---|---|
| `attn_qkv` (the converter's --fuse-qkv) | query, key and value rows, in that order |
| other tensors of several weights | their rows, as many of each |
| rows of queries and keys as neighbours turn | rows as halves of a head turn |
| types that can only be listed, such as IQ2_XXS | nothing, and that is said |

Source: llama.cpp `conversion/`; `src/llama-graph.cpp`, `build_qkv`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ...graph.roles import Address, Role
from ...graph.tensor import ScaledTensor, SlicedTensor, TensorView
from ...quantize.encoding import get_encoding, ggml_types
from ...quantize.gguf_file.header import TensorInfo
from ...quantize.gguf_file.reader import GgufFile, read_gguf
from ...quantize.gguf_file.tensor_names import CONSTANTS, LONG_FACTORS, family_of, gguf_names, tensor_addresses
from ...quantize.stored import EncodedTensor, StoredPart
from ..target import NotJudged
from .numbers import FOLDED_SCALE_KEY
from .rows import KEYS, QUERIES, as_halves

_FUSED = re.compile(r"blk\.(0|[1-9]\d{0,3})\.attn_qkv\.weight")
_QKV = (Role.ATTN_Q, Role.ATTN_K, Role.ATTN_V)


def read_weights(files: Sequence[Path]) -> dict[Address, TensorView]:
    """The decoded weights of all parts, lazily.

    Raises: InputError for a tensor that is none of a model of that architecture; NotJudged if some are of a type that
    can only be listed.
    """
    parts = [read_gguf(path) for path in files]
    said = metadata_of(parts)
    try:
        return _unfolded(weights_of(parts, said, _decoded), said)
    except NotJudged as error:
        raise NotJudged(str(error), _unfolded(error.decoded, said)) from None


def _unfolded(weights: Mapping[Address, TensorView], said: Mapping[str, Any]) -> dict[Address, TensorView]:
    """The weights of a model that multiplies by the factor itself."""
    folded = said.get(FOLDED_SCALE_KEY, 1.0)
    scaled = {} if folded == 1.0 else {a: v for a, v in weights.items() if a[0] is Role.EXPERT_DOWN}
    return {**weights, **{a: ScaledTensor(v, 1 / folded) for a, v in scaled.items()}}


def longer_than(parts: Sequence[GgufFile]) -> int | None:
    """The size of a context beyond which llama.cpp turns all positions by another table; None if there is one alone."""
    said = metadata_of(parts)
    length = said.get(f"{said.get('general.architecture')}.rope.scaling.original_context_length")
    has_long = any(tensor.name == LONG_FACTORS for part in parts for tensor in part.tensors)
    return length if has_long and isinstance(length, int) else None


def metadata_of(parts: Sequence[GgufFile]) -> dict[str, Any]:
    """What all parts of a file say."""
    return {key: value for part in parts for key, value in part.metadata.items()}


def weights_of(
    parts: Sequence[GgufFile], said: Mapping[str, Any], view_of: Callable[[GgufFile, TensorInfo], TensorView]
) -> dict[Address, TensorView]:
    """What `view_of` makes of each tensor, as the weights that it holds. Raises: as `read_weights`."""
    weights: dict[Address, TensorView] = {}
    unread: dict[str, list[str]] = {}
    for part in parts:
        for info in part.tensors:
            found = _addresses(part, info, said)
            if info.encoding in ggml_types():
                views = _views(view_of(part, info), found)
                weights.update((address, _turned_back(part, said, address, view)) for address, view in views)
            elif found:
                unread.setdefault(info.encoding, []).append(info.name)
    if unread:
        listed = "; ".join(f"{len(names)} tensors in {name}, such as {names[0]}" for name, names in unread.items())
        raise NotJudged(f"types that are not decoded here: {listed}", weights)
    return weights


def _addresses(file: GgufFile, info: TensorInfo, said: Mapping[str, Any]) -> dict[Address, tuple[int, int]]:
    """What a tensor holds, and of each weight its first row, and their number, in the second to last axis."""
    architecture = said.get("general.architecture")
    family = family_of(architecture)
    if info.name in CONSTANTS:
        return {}
    addresses = () if family is None else tensor_addresses(info.name, family)
    fused = _FUSED.fullmatch(info.name)
    if fused is not None:
        addresses = tuple((role, int(fused[1])) for role in _QKV)
    n_rows = info.shape[-2] if len(info.shape) > 1 else 1
    if family is None or not addresses or (fused is not None and len(info.shape) < 2):
        raise InputError(f"{file.path}: tensor '{info.name}' is not part of a model of architecture '{architecture}'")
    if len(addresses) == 1:
        return {addresses[0]: (0, n_rows)}
    sizes = _qkv_sizes(file, info, said) if fused is not None else _alike(file, info, len(addresses))
    return {address: (sum(sizes[:i]), sizes[i]) for i, address in enumerate(addresses)}


def _alike(file: GgufFile, info: TensorInfo, n: int) -> tuple[int, ...]:
    if info.shape[-2] % n:
        raise InputError(f"{file.path}: '{info.name}' has {info.shape[-2]} rows: expected those of {n} weights alike")
    return (info.shape[-2] // n,) * n


def _n_heads(said: Mapping[str, Any], layer: int | None) -> tuple[int, int]:
    """Those of queries, and of keys and values; 0 where the file does not say."""

    def number(key: str) -> int:
        found = said.get(f"{said.get('general.architecture')}.attention.{key}")
        if isinstance(found, list):
            found = found[layer] if layer is not None and layer < len(found) else 0
        return found if isinstance(found, int) else 0

    return number("head_count"), number("head_count_kv")


def _qkv_sizes(file: GgufFile, info: TensorInfo, said: Mapping[str, Any]) -> tuple[int, int, int]:
    """Rows of query, key and value, which share a size of head."""
    match = _FUSED.fullmatch(info.name)
    n_heads, n_kv_heads = _n_heads(said, int(match[1]) if match else None)
    rows = info.shape[-2]
    head, rest = divmod(rows, n_heads + 2 * n_kv_heads or rows + 1)
    if rest or not head:
        raise InputError(
            f"{file.path}: '{info.name}' has {rows} rows, which {n_heads} heads and {n_kv_heads} of keys and values "
            "do not divide"
        )
    return n_heads * head, n_kv_heads * head, n_kv_heads * head


def _turned_back(file: GgufFile, said: Mapping[str, Any], address: Address, view: TensorView) -> TensorView:
    """A weight with its rows as the graph has them."""
    family, (role, layer) = family_of(said.get("general.architecture")), address
    if family is None or role not in QUERIES | KEYS or not gguf_names(family).pairs_neighbours:
        return view
    n_heads = _n_heads(said, layer)[role in KEYS]
    if not n_heads or view.shape[0] % (2 * n_heads):
        raise InputError(f"{file.path}: '{view.name}' has {view.shape[0]} rows, which {n_heads} heads do not divide")
    return as_halves(view, n_heads)


def _decoded(file: GgufFile, info: TensorInfo) -> TensorView:
    part = StoredPart(file.path, file.data_offset + info.offset)
    return EncodedTensor(info.name, info.shape, get_encoding(info.encoding), (part,))


def _views(whole: TensorView, addresses: Mapping[Address, tuple[int, int]]) -> Iterator[tuple[Address, TensorView]]:
    if len(addresses) == 1:
        yield next(iter(addresses)), whole
        return
    for address, (start, count) in addresses.items():
        yield address, SlicedTensor(whole.name, whole, start, count)
