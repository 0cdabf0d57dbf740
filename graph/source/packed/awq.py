"""AWQ, as AutoAWQ, GPTQModel and llm-compressor's predecessors save it in the layout "gemm".

| tensor | type | shape |
|---|---|---|
| `qweight` | I32, eight channels of four bits in a word | [k, n / 8] |
| `qzeros` | I32, as the weight | [groups, n / 8] |
| `scales` | F16, BF16, F32 | [groups, n] |

Value = (code - zero point) * scale. In a word, from the lowest bits, lie channels 0, 2, 4, 6, 1, 3, 5, 7.
Source: AutoAWQ 0.2 `utils/packing_utils.py`; compressed-tensors 0.20 `entrypoints/convert/converters/autoawq.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dtypes import WEIGHT_DTYPES, DType
from .columns import AcrossTensor
from .gptq import read_sizes, words
from .taking import Taking

NAME = "AWQ"
_PARTS = (".qweight", ".qzeros", ".scales")
_LAYOUT = "gemm"
_BITS = range(4, 5)


def unpack(settings: Mapping[str, Any], taking: Taking) -> None:
    """Decodes every module with a packed weight."""
    layout = settings.get("version") or settings.get("checkpoint_format") or settings.get("format") or _LAYOUT
    is_known = str(layout).lower() == _LAYOUT
    if not is_known:
        taking.fault(f"the quantization_config has the version {layout!r:.40}: expected {_LAYOUT}")
    sizes = read_sizes(settings, taking, bits=_BITS)
    for module in taking.modules(_PARTS):
        view = _decoded(module, sizes[1], taking) if is_known and sizes is not None else None
        if view is None or sizes is None:
            taking.give_up(f"{module}.weight", [f"{module}{end}" for end in _PARTS])
        else:
            taking.decoded(f"{module}.weight", view, words(*sizes))


def _decoded(module: str, group: int, taking: Taking) -> AcrossTensor | None:
    main = taking.main(f"{module}.qweight", dtypes=[DType.I32])
    if main is None:
        return None
    k, n = main.shape[0], main.shape[1] * 8
    columns = group or k
    groups = -(-k // columns)
    zeros = taking.take(f"{module}.qzeros", dtypes=[DType.I32], shapes=[(groups, n // 8)])
    scales = taking.take(f"{module}.scales", dtypes=WEIGHT_DTYPES, shapes=[(groups, n)])
    if zeros is None or scales is None:
        return None
    weight = f"{module}.weight"
    return AcrossTensor(weight, (n, k), main, bits=4, columns=columns, scales=scales, zeros=zeros)
