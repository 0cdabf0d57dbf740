"""What configs of several families say alike: numbers with their limits, and lists that must fit one another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..blocks import Mixture, Norm
from ..config_fields import Fields
from ..rotary import LARGEST_HEAD

_MAX_LAYERS = 1024
_NAMED = 8  # of names that are not known


def named_classes(raw: Mapping[str, Any]) -> list[str]:
    """The classes that a config's `architectures` names."""
    given = raw.get("architectures")
    return [name for name in given if isinstance(name, str)] if isinstance(given, list) else []


def read_norm(read: Fields) -> Norm:
    return Norm(read.number("norm_eps", float, least=0))


def read_head_dim(read: Fields, *, n_heads: int, n_kv_heads: int, default: int) -> int:
    """The size of a head, which is even, of heads that share keys and values in groups of one size."""
    head_dim: int = read.number("head_dim", int, default)
    if n_heads % n_kv_heads:
        read.faults.add(f"num_attention_heads {n_heads} is not a multiple of num_key_value_heads {n_kv_heads}")
    if head_dim % 2 and not read.faults:
        read.faults.add(f"head_dim is {head_dim}: expected an even number, since rotation pairs its halves")
    if head_dim > LARGEST_HEAD:
        read.faults.add(f"head_dim is {head_dim}: expected at most {LARGEST_HEAD}")
    return head_dim


def read_n_layers(read: Fields) -> int:
    n_layers: int = read.number("num_hidden_layers", int)
    if n_layers > _MAX_LAYERS:
        read.faults.add(f"num_hidden_layers is {n_layers}: expected at most {_MAX_LAYERS}")
    return min(n_layers, _MAX_LAYERS)


def check_layer_types(read: Fields, names: list[str], *, n_layers: int, known: Sequence[str]) -> list[str]:
    """`layer_types`, one known name a layer; stand-ins, with a fault, for what is none."""
    unknown = sorted(set(names) - set(known))
    if unknown:
        more = f" and {len(unknown) - _NAMED} more" if len(unknown) > _NAMED else ""
        read.faults.add(
            f"layer_types holds {', '.join(map(repr, unknown[:_NAMED]))}{more}: expected {' or '.join(known)}; "
            "another kind of layer needs its block in graph/blocks.py"
        )
        names = [name if name in known else known[0] for name in names]
    if len(names) != n_layers:
        read.faults.add(f"layer_types has {len(names)} entries but num_hidden_layers is {n_layers}")
    return names


def check_chosen(read: Fields, mixture: Mixture, n_experts: str) -> Mixture:
    """The mixture, with a fault if it chooses more experts than it has; `n_experts` is what a config calls their number."""
    if mixture.top_k > mixture.n_experts:
        read.faults.add(f"num_experts_per_tok {mixture.top_k} exceeds {n_experts} {mixture.n_experts}")
    return mixture
