"""The configuration of an LFM2 / LFM2.5 model, normalised once.

Published configs spell the same number in several ways (see `_ALIASES` and `_rope_theta`). This
module is the only place that knows them; everyone else reads `ModelConfig`.
Source: transformers `configuration_lfm2.py` and `configuration_lfm2_moe.py`, and the configs of
LFM2-350M … LFM2-24B-A2B and LFM2.5.
"""

from __future__ import annotations

import enum
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import Faults, InputError

CONFIG_FILE = "config.json"


class Operator(enum.Enum):
    """What mixes tokens in a layer; the value is the config's spelling in `layer_types`."""

    SHORT_CONV = "conv"
    ATTENTION = "full_attention"


@dataclass(frozen=True, kw_only=True)
class MoEConfig:
    """Mixture of experts: sizes and routing rule."""

    n_experts: int
    top_k: int
    ffn_size: int
    n_dense_layers: int
    use_expert_bias: bool
    norm_topk_prob: bool
    routed_scaling_factor: float


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Every number of the architecture, one owner each.

    Units: sizes in elements; `rope_theta` dimensionless; `norm_eps` added to the mean square.
    """

    model_type: str
    hidden_size: int
    vocab_size: int
    operators: tuple[Operator, ...]
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_size: int
    conv_width: int
    conv_bias: bool
    norm_eps: float
    rope_theta: float
    context_length: int
    tied: bool
    moe: MoEConfig | None
    bos_token_id: int | None
    eos_token_ids: tuple[int, ...]
    pad_token_id: int | None
    dtype: str
    raw: Mapping[str, Any] = field(repr=False, compare=False)
    notes: tuple[str, ...] = ()

    @property
    def n_layers(self) -> int:
        return len(self.operators)

    @property
    def q_size(self) -> int:
        return self.n_heads * self.head_dim

    @property
    def kv_size(self) -> int:
        return self.n_kv_heads * self.head_dim

    @property
    def attention_layers(self) -> tuple[int, ...]:
        return tuple(i for i, op in enumerate(self.operators) if op is Operator.ATTENTION)

    def is_moe_layer(self, layer: int) -> bool:
        return self.moe is not None and layer >= self.moe.n_dense_layers

    @property
    def cache_elements_per_token(self) -> int:
        """Keys and values one more token of context adds, over all attention layers."""
        return 2 * self.kv_size * len(self.attention_layers)


def load_config(folder: Path) -> ModelConfig:
    """Reads and normalises `folder/config.json`.

    Raises: InputError if the file is missing, not JSON, of another architecture, or contradicts itself.
    """
    path = folder / CONFIG_FILE
    try:
        raw = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise InputError(f"{path}: not found; a checkpoint folder needs config.json") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(raw).__name__}")
    return parse_config(raw, where=str(path))


# One owner per field; the other spellings must agree with it where both are given.
_ALIASES = {
    "norm_eps": ("block_norm_eps",),
    "hidden_size": ("block_dim", "conv_dim", "conv_dim_out"),
    "num_attention_heads": ("num_heads",),
    "num_experts": ("num_local_experts",),
    "tie_word_embeddings": ("tie_embedding",),
}

_MODEL_TYPES = ("lfm2", "lfm2_moe")
_MAX_LAYERS = 1024


class _Reader:
    """Typed look-ups in a raw config that collect what is wrong instead of stopping at the first."""

    def __init__(self, raw: Mapping[str, Any]) -> None:
        self.raw = raw
        self.faults = Faults()
        self.notes: list[str] = []

    def value(self, key: str) -> Any:
        """The value of a field under its own name or an alias; None if absent."""
        given = {k: self.raw[k] for k in (key, *_ALIASES.get(key, ())) if self.raw.get(k) is not None}
        first = next(iter(given.values()), None)
        if any(v != first for v in given.values()):
            pairs = " but ".join(f"{k} is {v}" for k, v in given.items())
            self.faults.add(f"{pairs}: these must agree")
        return first

    def number(self, key: str, kind: type, default: Any = None, *, least: float = 1) -> Any:
        found = self.value(key)
        if found is not None:
            return self.checked(key, found, kind, least=least)
        if default is None:
            self.faults.add(f"{key} is missing")
        return kind(1) if default is None else default

    def checked(self, key: str, found: Any, kind: type, *, least: float = 1) -> Any:
        """A value as a number of its kind; a stand-in of 1 and a fault if it is none, or out of range."""
        integral = isinstance(found, int) or (isinstance(found, float) and found.is_integer())
        if isinstance(found, bool) or not isinstance(found, int | float) or (kind is int and not integral):
            self.faults.add(f"{key} is {found!r}: expected {'an integer' if kind is int else 'a number'}")
            return kind(1)
        if not least <= found <= 2**40:
            self.faults.add(f"{key} is {found}: expected {least} to 2^40")
            return kind(1)
        return kind(found)

    def flag(self, key: str, default: bool) -> bool:
        found = self.value(key)
        if found is None:
            return default
        if not isinstance(found, bool):
            self.faults.add(f"{key} is {found!r}: expected true or false")
            return default
        return found

    def items(self, key: str, kind: type) -> list[Any] | None:
        """A list of strings or integers; None if absent or, with a fault, anything else."""
        found = self.value(key)
        if found is None or (isinstance(found, list) and all(type(item) is kind for item in found)):
            return found
        self.faults.add(f"{key} is {found!r}: expected a list of {kind.__name__}")
        return None

    def table(self, key: str) -> Mapping[str, Any]:
        """A JSON object; empty if absent or, with a fault, anything else."""
        found = self.value(key)
        if found is None or isinstance(found, Mapping):
            return found or {}
        self.faults.add(f"{key} is {found!r}: expected an object")
        return {}


def parse_config(raw: Mapping[str, Any], *, where: str = CONFIG_FILE) -> ModelConfig:
    """Normalises the JSON object of a config file.

    Raises: InputError with every contradiction and every missing field.
    """
    model_type = raw.get("model_type")
    if model_type not in _MODEL_TYPES:
        raise InputError(
            f"{where}: unknown architecture: model_type is {model_type!r}, expected one of {', '.join(_MODEL_TYPES)}"
        )
    read = _Reader(raw)
    if raw.get("auto_map"):
        read.notes.append("auto_map names custom code, which is never run")
    hidden = read.number("hidden_size", int)
    n_heads = read.number("num_attention_heads", int)
    n_kv_heads = read.number("num_key_value_heads", int)
    head_dim = read.number("head_dim", int, _head_dim(read, hidden, n_heads))
    if n_heads % n_kv_heads:
        read.faults.add(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    if head_dim % 2 and not read.faults:
        read.faults.add(f"head_dim is {head_dim}: expected an even number, since rotation pairs its halves")
    operators = _operators(read)
    vocab_size = read.number("vocab_size", int)
    config = ModelConfig(
        model_type=model_type,
        hidden_size=hidden,
        vocab_size=vocab_size,
        operators=operators,
        n_heads=n_heads,
        n_kv_heads=n_kv_heads,
        head_dim=head_dim,
        ffn_size=_ffn_size(read, model_type),
        conv_width=read.number("conv_L_cache", int, least=2),
        conv_bias=read.flag("conv_bias", False),
        norm_eps=read.number("norm_eps", float, least=0),
        rope_theta=_rope_theta(read),
        context_length=read.number("max_position_embeddings", int),
        tied=read.flag("tie_word_embeddings", True),
        moe=_moe(read, len(operators)) if model_type == "lfm2_moe" else None,
        bos_token_id=_token_id(read, "bos_token_id", vocab_size),
        eos_token_ids=_token_ids(read, "eos_token_id", vocab_size),
        pad_token_id=_token_id(read, "pad_token_id", vocab_size),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
        raw=dict(raw),
        notes=tuple(read.notes),
    )
    read.faults.raise_if_any(where)
    return config


def _head_dim(read: _Reader, hidden: int, n_heads: int) -> int:
    if read.value("head_dim") is None and hidden % n_heads:
        read.faults.add(f"hidden_size {hidden} is not a multiple of num_attention_heads {n_heads}")
    return max(1, hidden // n_heads)


def _operators(read: _Reader) -> tuple[Operator, ...]:
    n_layers = read.number("num_hidden_layers", int)
    names, indices = read.items("layer_types", str), read.items("full_attn_idxs", int)
    if n_layers > _MAX_LAYERS:
        read.faults.add(f"num_hidden_layers is {n_layers}: expected at most {_MAX_LAYERS}")
        n_layers = _MAX_LAYERS
    if names is None:
        if indices is None:
            read.faults.add("neither layer_types nor full_attn_idxs says which layers are attention")
        outside = [i for i in indices or () if not 0 <= i < n_layers]
        if outside:
            read.faults.add(f"full_attn_idxs holds {outside[0]}: expected layers 0 to {n_layers - 1}")
        attention = frozenset(indices or ())
        return tuple(Operator.ATTENTION if i in attention else Operator.SHORT_CONV for i in range(n_layers))
    known = {op.value: op for op in Operator}
    unknown = sorted(set(names) - known.keys())
    if unknown:
        read.faults.add(f"layer_types holds {unknown[0]!r}: expected {' or '.join(known)}")
        return (Operator.SHORT_CONV,) * len(names)
    if len(names) != n_layers:
        read.faults.add(f"layer_types has {len(names)} entries but num_hidden_layers is {n_layers}")
    operators = tuple(known[name] for name in names)
    from_types = [i for i, op in enumerate(operators) if op is Operator.ATTENTION]
    if indices is not None and sorted(indices) != from_types:
        read.faults.add(f"full_attn_idxs {sorted(indices)} disagrees with layer_types, whose attention is {from_types}")
    return operators


def _ffn_size(read: _Reader, model_type: str) -> int:
    """Rows of w1 in a dense layer.

    Dense checkpoints give the size before an adjustment that the model applies itself: two thirds,
    a multiplier, rounded up to a multiple (6656 means 4608 in LFM2-350M).
    """
    if model_type == "lfm2_moe":
        return read.number("intermediate_size", int)
    given, block = read.value("intermediate_size"), read.value("block_ff_dim")
    if block is not None and given is not None and block != given:
        read.notes.append(f"block_ff_dim {block} is used, intermediate_size {given} is not: it is the older spelling")
    size = read.number("intermediate_size" if block is None else "block_ff_dim", int)
    if not read.flag("block_auto_adjust_ff_dim", True):
        return size
    adjusted = int(2 * size / 3)
    if "block_ffn_dim_multiplier" in read.raw and read.raw["block_ffn_dim_multiplier"] is None:
        return adjusted  # an explicit null also turns the rounding off
    multiple = read.number("block_multiple_of", int, 256)
    adjusted = int(read.number("block_ffn_dim_multiplier", float, 1.0, least=1e-6) * adjusted)
    return multiple * -(-adjusted // multiple)


def _rope_theta(read: _Reader) -> float:
    nested, scaling = read.table("rope_parameters"), read.table("rope_scaling")
    kinds = {str(table.get("rope_type", table.get("type", "default"))) for table in (nested, scaling)}
    for kind in sorted(kinds - {"default"}):
        read.faults.add(f"rope type '{kind}' is not part of the LFM2 family: expected 'default'")
    fields = {"rope_theta": read.value("rope_theta"), "rope_parameters.rope_theta": nested.get("rope_theta")}
    thetas = [read.checked(key, theta, float) for key, theta in fields.items() if theta is not None]
    if not thetas:
        read.faults.add("rope_theta is given neither at the top level nor in rope_parameters")
        return 1.0
    if thetas[0] != thetas[-1]:
        read.faults.add(" but ".join(f"{key} is {theta}" for key, theta in fields.items()) + ": these must agree")
    return float(thetas[0])


def _moe(read: _Reader, n_layers: int) -> MoEConfig:
    moe = MoEConfig(
        n_experts=read.number("num_experts", int),
        top_k=read.number("num_experts_per_tok", int),
        ffn_size=read.number("moe_intermediate_size", int),
        n_dense_layers=read.number("num_dense_layers", int, least=0),
        use_expert_bias=read.flag("use_expert_bias", True),
        norm_topk_prob=read.flag("norm_topk_prob", True),
        routed_scaling_factor=read.number("routed_scaling_factor", float, 1.0, least=0),
    )
    if moe.top_k > moe.n_experts:
        read.faults.add(f"num_experts_per_tok {moe.top_k} exceeds num_experts {moe.n_experts}")
    if moe.n_dense_layers > n_layers:
        read.faults.add(f"num_dense_layers {moe.n_dense_layers} exceeds the {n_layers} layers")
    return moe


def _token_ids(read: _Reader, key: str, vocab_size: int) -> tuple[int, ...]:
    found = read.value(key)
    ids = found if isinstance(found, list) else [] if found is None else [found]
    if not all(type(i) is int and 0 <= i < vocab_size for i in ids):
        read.faults.add(f"{key} is {found!r}: expected token ids below vocab_size {vocab_size}")
        return ()
    return tuple(ids)


def _token_id(read: _Reader, key: str, vocab_size: int) -> int | None:
    ids = _token_ids(read, key, vocab_size)
    return ids[0] if ids else None
