"""compressed-tensors, as llm-compressor saves it: integers and small floats, in words or as they are.

| format | tensor | type | shape |
|---|---|---|---|
| pack-quantized | `weight_packed` | I32, codes of 1 to 8 bits, dense | [n, ceil(k * bits / 32)] |
| | `weight_shape` | I64 | [2]: n, k |
| int-, naive-quantized | `weight` | I8 | [n, k] |
| float-, mxfp8-quantized | `weight` | F8_E4M3 | [n, k] |
| nvfp4-, mxfp4-pack-quantized | `weight_packed` | U8, two E2M1 codes, the first in the low bits | [n, k / 2] |
| mxfp6-pack-quantized | `weight_packed` | U8, four E2M3 codes in three bytes | [n, k * 3 / 4] |
| all | `weight_scale` | F32, F16, BF16; NVFP4 F8_E4M3; MX powers of two as U8 | [1], [n, 1], [n, k / g], or blocks |
| asymmetric | `weight_zero_point` | I8; packed down the columns as I32 | that of the scales |
| NVFP4 | `weight_global_scale` | F32 | [1] |

Value = (code - zero point) * scale; of NVFP4 code * (scale / global scale). A `weight_g_idx` of files until 2026 gives
each column its group.
Source: compressed-tensors 0.20 `compressors/`, `quantization/lifecycle/forward_helpers.py`; 0.17 for `weight_g_idx`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ...dtypes import WEIGHT_DTYPES, DType
from ...families import FAMILIES
from ...roles import Role
from ...tensor import Shape
from ..safetensors import StoredTensor
from .ct_schemes import Scheme, read_schemes
from .fp8 import drop_scales_of_activations
from .integers import SignedTensor, columns_in_order
from .taking import Taking
from .views import FloatTensor, PackedTensor, Scales

NAME = "compressed-tensors"
_PARTS = (
    ".weight_packed",
    ".weight_scale",
    ".weight_shape",
    ".weight_zero_point",
    ".weight_g_idx",
    ".weight_global_scale",
)
# Of the formats of small floats: what a code is, its bits, and the types of the scales.
_POWERS = (DType.U8, DType.F8_E8M0)
_FLOATS: Mapping[str, tuple[str, int, tuple[DType, ...]]] = {
    "float-quantized": ("e4m3", 8, WEIGHT_DTYPES),
    "naive-quantized": ("e4m3", 8, WEIGHT_DTYPES),
    "mxfp8-quantized": ("e4m3", 8, _POWERS),
    "mxfp6-pack-quantized": ("e2m3", 6, _POWERS),
    "mxfp4-pack-quantized": ("e2m1", 4, _POWERS),
    "nvfp4-pack-quantized": ("e2m1", 4, (DType.F8_E4M3,)),
}


def unpack(settings: Mapping[str, Any], taking: Taking) -> None:
    """Decodes every module that has a part of a packed weight, by the scheme that the config gives it."""
    schemes = read_schemes(settings, taking)
    tables = {family.tensor_name(Role.EMBED, None).removesuffix(".weight") for family in FAMILIES}
    coded = [name for name, tensor in taking.tensors.items() if tensor.dtype not in WEIGHT_DTYPES]
    modules = [*taking.modules(_PARTS), *(name.removesuffix(".weight") for name in coded if name.endswith(".weight"))]
    without = []
    for module in dict.fromkeys(modules):
        has_group, scheme = schemes.of(module, is_table=module in tables)
        view = None if scheme is None else _decoded(module, scheme, taking)
        if scheme is not None and view is not None:
            taking.decoded(f"{module}.weight", view, scheme.words)
        else:
            taking.give_up(f"{module}.weight", [f"{module}{end}" for end in (".weight", *_PARTS)])
            without += [module] if not has_group else []
    if without:
        more = f" and {len(without) - 1} others" if len(without) > 1 else ""
        taking.fault(
            f"the weights of '{without[0]}'{more} are packed, and no group of the quantization_config has them"
        )
    drop_scales_of_activations(taking)


def _decoded(module: str, scheme: Scheme, taking: Taking) -> PackedTensor | None:
    if scheme.format == "pack-quantized":
        return _words(module, scheme, taking)
    if scheme.format in _FLOATS and not (scheme.format == "naive-quantized" and _is_integer(module, taking)):
        return _floats(module, scheme, taking)
    main = taking.main(f"{module}.weight", dtypes=[DType.I8])
    return None if main is None else _integers(module, scheme, main, main.shape, taking)


def _is_integer(module: str, taking: Taking) -> bool:
    tensor = taking.tensors.get(f"{module}.weight")
    return tensor is None or not tensor.dtype.is_coded


def _words(module: str, scheme: Scheme, taking: Taking) -> PackedTensor | None:
    stored = taking.take(f"{module}.weight_shape", dtypes=[DType.I64], shapes=[(2,)])
    main = taking.main(f"{module}.weight_packed", dtypes=[DType.I32])
    if main is None or stored is None:
        return None
    shape = tuple(int(n) for n in stored.elements(0, 2))
    expected = shape[0], -(-shape[1] * scheme.bits // 32)
    if min(shape) < 1 or main.shape != expected:
        taking.fault(
            f"tensor '{module}.weight_packed' has shape {list(main.shape)}: expected {list(expected)} for "
            f"{scheme.bits} bits of the {list(shape)} that 'weight_shape' says"
        )
        return None
    return _integers(module, scheme, main, shape, taking)


def _integers(module: str, scheme: Scheme, main: StoredTensor, shape: Shape, taking: Taking) -> PackedTensor | None:
    scales = _scales(module, scheme, shape, WEIGHT_DTYPES, taking)
    zeros = order = None
    name = f"{module}.weight_zero_point"
    if scales is not None and not scheme.is_symmetric:
        is_packed = main.dtype is DType.I32 and scheme.strategy in ("group", "channel")
        rows = -(-shape[0] * scheme.bits // 32)
        expected = (rows, scales.n_across) if is_packed else scales.tensor.shape
        zeros = taking.take(name, dtypes=[DType.I32 if is_packed else DType.I8], shapes=[expected])
    elif taking.has(name):
        taking.drop([name], "is a zero point of a symmetric scheme")
    if taking.has(f"{module}.weight_g_idx") and scales is not None:
        order = taking.take(f"{module}.weight_g_idx", dtypes=[DType.I32, DType.I64], shapes=[shape[1:]])
        if order is None:
            return None
        order = columns_in_order(order, scales.columns, scales.n_across, taking)
    if scales is None or (zeros is None and not scheme.is_symmetric):
        return None
    weight = f"{module}.weight"
    return SignedTensor(weight, shape, main, bits=scheme.bits, scales=scales, zeros=zeros, order=order)


def _floats(module: str, scheme: Scheme, taking: Taking) -> PackedTensor | None:
    kind, bits, dtypes = _FLOATS[scheme.format]
    is_packed = bits < 8
    part = ".weight_packed" if is_packed else ".weight"
    main = taking.main(f"{module}{part}", dtypes=[DType.U8 if is_packed else DType.F8_E4M3])
    if main is None:
        return None
    shape = main.shape[0], main.shape[1] * 8 // bits
    divisor = None
    if scheme.format.startswith("nvfp4"):
        divisor = taking.take(f"{module}.weight_global_scale", dtypes=[DType.F32], shapes=[(1,), ()])
        if divisor is None:
            return None
    scales = _scales(module, scheme, shape, dtypes, taking, divisor=divisor)
    if scales is None:
        return None
    return FloatTensor(f"{module}.weight", taking.dtype, shape, main, kind=kind, bits=bits, scales=scales)


def _scales(
    module: str,
    scheme: Scheme,
    shape: Shape,
    dtypes: tuple[DType, ...],
    taking: Taking,
    *,
    divisor: StoredTensor | None = None,
) -> Scales | None:
    n, k = shape
    rows, columns = scheme.rows or n, scheme.columns or k
    expected: list[Shape] = [(-(-n // rows), -(-k // columns))]
    if scheme.strategy == "tensor":
        expected = [(1,), (), (1, 1)]
    if scheme.strategy == "channel":
        expected += [(n,)]
    tensor = taking.take(f"{module}.weight_scale", dtypes=dtypes, shapes=expected)
    return None if tensor is None else Scales(tensor, n, k, rows, columns, divisor)
