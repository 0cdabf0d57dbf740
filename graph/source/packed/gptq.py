"""GPTQ, as AutoGPTQ, GPTQModel and transformers save it.

| tensor | type | shape |
|---|---|---|
| `qweight` | I32, codes dense down the columns | [k * bits / 32, n] |
| `qzeros` | I32, codes dense along the rows | [groups, n * bits / 32] |
| `scales` | F16, BF16, F32 | [groups, n] |
| `g_idx` | I32: the group of each column of the weight | [k] |

Value = (code - zero point) * scale. The format "gptq" stores zero points less one, wrapping; "gptq_v2" as they are.
`dynamic` of the config gives modules that a pattern fits settings of their own; the first pattern that fits counts.
Source: GPTQModel 7.7 `nn_modules/qlinear/__init__.py` (dequantize_weight), `utils/model_dequant.py`
(_correct_gptq_v1_qzeros), `quantization/config.py` (dynamic_get).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dtypes import WEIGHT_DTYPES, DType
from .columns import ColumnTensor, DownTensor
from .integers import columns_in_order
from .patterns import fits
from .taking import Taking, is_count

NAME = "GPTQ"
PARTS = (".qweight", ".qzeros", ".scales", ".g_idx")
# What is added to a stored zero point, by the format.
_ADDED = {"gptq": 1, "gptq_v2": 0}
_BITS = range(2, 9)


def unpack(settings: Mapping[str, Any], taking: Taking) -> None:
    """Decodes every module with a packed weight."""
    format_ = settings.get("checkpoint_format") or settings.get("format") or "gptq"
    added = _ADDED.get(str(format_).lower())
    if added is None:
        taking.fault(f"the quantization_config has the format {format_!r:.40}: expected {' or '.join(_ADDED)}")
    patterns = settings.get("dynamic") or {}
    if not isinstance(patterns, Mapping):
        taking.fault("dynamic of the quantization_config must be an object of patterns")
        patterns = {}
    for module in taking.modules(PARTS):
        own = {**settings, **_overrides(module, patterns)}
        sizes = read_sizes(own, taking, bits=_BITS)
        view = None if added is None or sizes is None else _decoded(module, *sizes, added, taking)
        if view is None or sizes is None:
            taking.give_up(f"{module}.weight", [f"{module}{end}" for end in PARTS])
        else:
            taking.decoded(f"{module}.weight", view, words(*sizes))


def read_sizes(settings: Mapping[str, Any], taking: Taking, *, bits: range) -> tuple[int, int] | None:
    """Bits, and columns that share a scale; 0 stands for all of a row."""
    found, group = settings.get("bits"), settings.get("group_size", 128)
    if type(found) is not int or found not in bits:
        some = f"{bits[0]} to {bits[-1]}" if len(bits) > 1 else f"{bits[0]}"
        taking.fault(f"the quantization_config has {found!r:.20} bits: expected {some}")
        return None
    if not is_count(group, least=-1) or group == 0:
        taking.fault(f"the quantization_config has the group_size {group!r:.20}: expected a number of columns, or -1")
        return None
    return found, max(0, group)


def words(bits: int, group: int) -> str:
    """`int4 g128`."""
    return f"int{bits} g{group}" if group else f"int{bits} a scale a row"


def _overrides(module: str, patterns: Mapping[str, Any]) -> Mapping[str, Any]:
    """Settings of the first pattern that fits; one that starts with "-:" leaves modules as they were."""
    for pattern, own in patterns.items():
        if fits(pattern.removeprefix("-:").removeprefix("+:"), module):
            return own if isinstance(own, Mapping) else {}
    return {}


def _decoded(module: str, bits: int, group: int, added: int, taking: Taking) -> ColumnTensor | None:
    main = taking.main(f"{module}.qweight", dtypes=[DType.I32])
    if main is None:
        return None
    k, n = main.shape[0] * 32 // bits, main.shape[1]
    columns = group or k
    groups = -(-k // columns)
    zeros = taking.take(f"{module}.qzeros", dtypes=[DType.I32], shapes=[(groups, -(-n * bits // 32))])
    scales = taking.take(f"{module}.scales", dtypes=WEIGHT_DTYPES, shapes=[(groups, n)])
    order = None
    if taking.has(f"{module}.g_idx"):
        order = taking.take(f"{module}.g_idx", dtypes=[DType.I32, DType.I64], shapes=[(k,)])
        if order is None:
            return None
        order = columns_in_order(order, columns, groups, taking)
    if zeros is None or scales is None:
        return None
    return DownTensor(
        f"{module}.weight", (n, k), main,
        bits=bits, columns=columns, scales=scales, zeros=zeros, added=added, order=order,
    )  # fmt: skip
