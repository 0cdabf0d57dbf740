"""What the inputs and outputs of a decoder's graph mean, by the names that writers give them.

| input | shape | whose |
|---|---|---|
| `input_ids`, `attention_mask`, `position_ids` | [batch, tokens]; the mask also of those before | all; positions of a graph that turns heads itself |
| `num_logits_to_keep` | rank 0, or [1] | onnx-community, Liquid, ours |
| `past_conv.N`, `past_key_values.N.key`, `.value` | [batch, …] | onnx-community, Liquid, ours |
| `past.N.conv` | [batch, hidden, width - 1] | onnxruntime-genai's builder |

The output of a cache has `present` where the input has `past` or `past_key_values`. A size of a cache that only a
config beside the graph tells, as onnxruntime-genai's builder leaves that of a head, has a name of its own in the graph.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.json_text import read_object
from .genai import GENAI_CONFIG

IDS, MASK, POSITIONS, N_LOGITS, LOGITS = (
    "input_ids", "attention_mask", "position_ids", "num_logits_to_keep", "logits",
)  # fmt: skip
_OTHERS = frozenset({IDS, MASK, POSITIONS, N_LOGITS})


def is_cache(name: str) -> bool:
    """Whether an input is what an earlier run gave."""
    return name.startswith("past")


def unknown_inputs(names: Iterable[str]) -> list[str]:
    """Those that no writer known here has."""
    return [name for name in names if name not in _OTHERS and not is_cache(name)]


def head_size(folder: Path) -> int | None:
    """Elements of a head, as one of the configs beside a graph tells it."""
    genai = _object(folder / GENAI_CONFIG)
    for name in ("model", "decoder"):
        genai = found if isinstance(found := genai.get(name), dict) else {}
    config = _object(folder / CONFIG_FILE)
    hidden, heads = config.get("hidden_size"), config.get("num_attention_heads")
    whole = hidden // heads if isinstance(hidden, int) and isinstance(heads, int) and heads > 0 else None
    sizes = (genai.get("head_size"), config.get("head_dim"), whole)
    return next((size for size in sizes if isinstance(size, int) and size > 0), None)


def _object(path: Path) -> dict[str, Any]:
    return read_object(path) if path.is_file() else {}


def presents(pasts: Sequence[str], outputs: Sequence[str]) -> Mapping[str, str]:
    """The output that each cache goes on as: by name, or where names do not tell, by position after the logits."""
    named = {name: name.replace("past_key_values", "present").replace("past", "present") for name in pasts}
    if all(name in outputs for name in named.values()):
        return named
    rest = [name for name in outputs if name != LOGITS]
    return dict(zip(pasts, rest, strict=True)) if len(rest) == len(pasts) else {}
