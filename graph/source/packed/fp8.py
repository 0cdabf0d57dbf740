"""Floats of eight bits, with a scale for the tensor, for each row, or for blocks of both.

| tensor | type | shape |
|---|---|---|
| `weight`, or the name of a stack of experts | F8_E4M3, F8_E5M2 | [..., n, k] |
| `weight_scale_inv` (after a stack: `_scale_inv`) | F32, F16, BF16; a power of two as F8_E8M0 or U8 | [..., ceil(n / b), ceil(k / b)] |
| or `weight_scale` | the same | [], [1], [n], [n, 1], or [n, k / 32] of powers of two |

Value = code * scale. Blocks are `weight_block_size` of the config; where it names none they follow from the shapes.
Source: transformers `integrations/finegrained_fp8.py` (as DeepSeek-V3 stores it), `fbgemm_fp8.py`; vLLM `fp8.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...codes import KIND_OF
from ...dtypes import WEIGHT_DTYPES, DType
from ...tensor import Shape
from ..safetensors import StoredTensor
from .taking import Taking, is_count
from .views import FloatTensor, Scales

NAME = "FP8"
_CODES = (DType.F8_E4M3, DType.F8_E5M2)
_POWERS = (DType.F8_E8M0, DType.U8)
_MX_GROUP = 32
# What follows the name of a weight in that of its scales: those of blocks, and others.
_INVERSE, _SCALE = "_scale_inv", "_scale"
_BLOCK = (128, 128)
# What a runtime scales activations by, or what it keeps in its cache.
_OF_ACTIVATIONS = tuple(
    f".{of}_{kind}"
    for of in ("input", "output", "activation", "q", "k", "v")
    for kind in ("scale", "scale_ub", "zero_point", "global_scale")
)


def unpack(settings: Mapping[str, Any], taking: Taking) -> None:
    """Decodes every weight of eight bits."""
    block = _block(settings, taking)
    coded = [name for name, tensor in taking.tensors.items() if tensor.dtype in _CODES]
    for name in dict.fromkeys([*coded, *taking.modules((_INVERSE,))]):
        _weight(name, block, taking)
    drop_scales_of_activations(taking)


def drop_scales_of_activations(taking: Taking) -> None:
    """Takes what decoded weights have no use for."""
    taking.drop([name for name in taking.tensors if name.endswith(_OF_ACTIVATIONS)], "scales activations, not weights")


def _block(settings: Mapping[str, Any], taking: Taking) -> Shape | None:
    """Rows and columns of a block as the config has them; None where it says nothing."""
    if "weight_block_size" not in settings or settings["weight_block_size"] is None:
        return None
    block = settings["weight_block_size"]
    if isinstance(block, list) and len(block) == 2 and all(map(is_count, block)):
        return block[0], block[1]
    taking.fault(f"weight_block_size of the quantization_config is {block!r}: expected two numbers of elements")
    return None


def _weight(name: str, block: Shape | None, taking: Taking) -> None:
    main = taking.main(name, dtypes=_CODES, n_axes=(2, 3))
    scales = None
    if main is not None:
        has_plain = not taking.has(name + _INVERSE) and taking.has(name + _SCALE)
        scales = _plain_scales(name, main, taking) if has_plain else _block_scales(name, main, block, taking)
    if main is None or scales is None:
        taking.give_up(name, (name + _INVERSE, name + _SCALE))
        return
    kind = KIND_OF[main.dtype]
    view = FloatTensor(name, taking.dtype, main.shape, main, kind=kind, bits=8, scales=scales)
    taking.decoded(name, view, _words(kind, scales))


def _block_scales(name: str, main: StoredTensor, block: Shape | None, taking: Taking) -> Scales | None:
    *stack, n, k = main.shape
    found = taking.tensors.get(name + _INVERSE)
    if block is None and found is not None and len(found.shape) == len(main.shape):
        block = _even_block(main.shape[-2:], found.shape[-2:])
    rows, columns = block or _BLOCK
    shapes: list[Shape] = [(*stack, -(-n // rows), -(-k // columns))]
    if block is None:
        shapes += [(), (1,)] if not stack else []
    tensor = taking.take(name + _INVERSE, dtypes=(*WEIGHT_DTYPES, *_POWERS), shapes=shapes)
    if tensor is None:
        return None
    if len(tensor.shape) < 2:
        rows, columns = n, k
    return Scales(tensor, n, k, rows, columns)


def _even_block(shape: Shape, blocks: Shape) -> Shape | None:
    """The block that divides a matrix into so many, if one does."""
    if any(count < 1 or size % count for size, count in zip(shape, blocks, strict=True)):
        return None
    return shape[0] // blocks[0], shape[1] // blocks[1]


def _plain_scales(name: str, main: StoredTensor, taking: Taking) -> Scales | None:
    n, k = main.shape[-2:]
    if taking.tensors[name + _SCALE].dtype in _POWERS:
        shape = (*main.shape[:-1], -(-k // _MX_GROUP))
        tensor = taking.take(name + _SCALE, dtypes=_POWERS, shapes=[shape])
        return None if tensor is None else Scales(tensor, n, k, 1, _MX_GROUP)
    shapes: list[Shape] = [(n, 1), (n,), (), (1,), (1, 1)]
    tensor = taking.take(
        name + _SCALE, dtypes=WEIGHT_DTYPES, shapes=shapes if len(main.shape) == 2 else [(*main.shape[:-1], 1)]
    )
    if tensor is None:
        return None
    is_one = tensor.shape in ((), (1,), (1, 1))
    return Scales(tensor, n, k, n if is_one else 1, k)


def _words(kind: str, scales: Scales) -> str:
    if (scales.rows, scales.columns) == (scales.n_rows, scales.n_columns):
        return f"{kind.upper()} a scale a tensor"
    if scales.columns == scales.n_columns:
        return f"{kind.upper()} a scale a row"
    return f"{kind.upper()} in blocks of {scales.rows}x{scales.columns}"
