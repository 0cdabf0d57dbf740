"""Recognises checkpoints whose weights a quantizer packed, by their tensors and by their config.

Such weights are not what the model was trained with: an artifact made of them carries two roundings. What `packed/`
decodes is read, and said; the rest is refused by name.
The tensors decide. A config that speaks of quantization over plain floats is stale, as merging tools leave it.
Source: transformers `utils/quantization_config.py`; the writers of each format.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ..dtypes import DType
from ..tensor import TensorView

# quant_method of a config (without case, "-" and "_") -> what people call it
_METHODS = {
    "bitsandbytes": "bitsandbytes", "gptq": "GPTQ", "awq": "AWQ", "aqlm": "AQLM", "vptq": "VPTQ",
    "quanto": "quanto", "eetq": "EETQ", "higgs": "HIGGS", "hqq": "HQQ", "compressedtensors": "compressed-tensors",
    "fbgemmfp8": "FBGEMM FP8", "torchao": "torchao", "gguf": "GGUF", "bitnet": "BitNet", "spqr": "SpQR",
    "fp8": "FP8", "quark": "Quark", "fpquant": "FP-Quant", "autoround": "AutoRound", "mxfp4": "MXFP4",
    "nvfp4": "NVFP4", "mxfp8": "MXFP8", "metal": "Metal kernels", "fouroversix": "FourOverSix", "sinq": "SINQ",
    "modelopt": "ModelOpt", "modeloptfp4": "ModelOpt NVFP4", "mlx": "MLX", "inc": "AutoRound",
}  # fmt: skip

# The end of a tensor's name -> its writer. The first that fits any tensor of the folder is the answer, so the
# more telling ends come first.
_BY_NAME = (
    (".absmax", "bitsandbytes (4 bit)"),
    (".quant_map", "bitsandbytes (4 bit)"),
    (".SCB", "bitsandbytes (8 bit)"),
    (".weight_packed", "compressed-tensors"),
    (".weight_global_scale", "compressed-tensors"),
    (".weight_scale_2", "ModelOpt NVFP4"),
    (".weight_scale_inv", "FP8"),
    (".g_idx", "GPTQ"),
    (".qweight", "AWQ or GPTQ"),
    (".W_q", "HQQ"),
    (":_data", "torchao"),
    ("_weight_qdata", "torchao"),
    (".weight._data", "quanto"),
    (".codebooks", "AQLM"),
    (".centroids", "VPTQ"),
    ("_blocks", "MXFP4"),
    (".weight_scales", "EETQ"),
)
# Of these ends the tensors alone say how they are decoded, by the method's key.
_SELF_DESCRIBED = {
    ".absmax": "bitsandbytes",
    ".quant_map": "bitsandbytes",
    ".SCB": "bitsandbytes",
    ".weight_scale_inv": "fp8",
}
# Companions that several writers use: they tell only beside weights that are no floats.
_SCALES = (".weight_scale", ".scales", "_scales", ".weight_shape", ".input_scale")
_PACKED = (DType.U8, DType.I8, DType.U32, DType.I32)
_FOUR_BIT_FLOATS = ("nvfp4", "mxfp4", "mxfp8")


@dataclass(frozen=True)
class Quantized:
    """The method that packed a checkpoint, and where that is seen.

    `key` is the method's, as configs spell it without case, "-" and "_"; None if it is not known. `by_tensors` is
    what the tensors say by themselves.
    """

    method: str
    evidence: str
    key: str | None = None
    by_tensors: str = ""

    @property
    def sentence(self) -> str:
        return f"is quantised by {self.method} ({self.evidence}): convert the 16-bit checkpoint it was made from"


def quantized_weights(raw: Mapping[str, Any], tensors: Mapping[str, TensorView]) -> Quantized | None:
    """How the tensors of a checkpoint are quantised; None if they are not, whatever its config says."""
    found = _by_tensors(tensors)
    if found is None:
        return None
    said = configured_method(raw)
    if said is None:
        return found
    key = _key(quantization_settings(raw))
    return replace(found, method=said, evidence=f"quantization_config in config.json, {found.evidence}", key=key)


def configured_method(raw: Mapping[str, Any]) -> str | None:
    """The method that a config names; None if it names none."""
    settings = quantization_settings(raw)
    return _method(settings) if settings else None


def quantization_settings(raw: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a config says of its weights' quantization; empty if it says nothing."""
    found = (raw.get(key) for key in ("quantization_config", "compression_config", "quantization"))
    return next((settings for settings in found if isinstance(settings, Mapping) and settings), {})


def _named(settings: Mapping[str, Any]) -> str | None:
    named = settings.get("quant_method") or settings.get("quant_algo")
    return named if isinstance(named, str) and named.isprintable() else None


def _key(settings: Mapping[str, Any]) -> str | None:
    named = _named(settings)
    return named and named.lower().replace("-", "").replace("_", "")


def _method(settings: Mapping[str, Any]) -> str:
    named, key = _named(settings), _key(settings)
    if named is None or key is None:
        return "MLX" if {"group_size", "bits"} <= settings.keys() else "a method that its config does not name"
    method = _METHODS.get(key, named)
    if key == "bitsandbytes":
        bits = 8 if settings.get("load_in_8bit") else 4 if settings.get("load_in_4bit") else None
        return f"{method} ({bits} bit)" if bits else method
    detail = str(settings.get("format") or settings.get("quant_algo") or "")
    narrow = next((kind.upper() for kind in _FOUR_BIT_FLOATS if kind in detail.lower()), None)
    return f"{method} ({narrow})" if narrow and narrow not in method else method


def _by_tensors(tensors: Mapping[str, TensorView]) -> Quantized | None:
    mlx = _mlx(tensors)
    if mlx is not None:
        return _seen("MLX", f"tensor '{mlx}'")
    coded = next((name for name, tensor in tensors.items() if tensor.dtype.is_coded), None)
    packed = coded or _packed_weight(tensors)
    for ending, method in _BY_NAME:
        name = next((name for name in tensors if name.endswith(ending)), None)
        if name is not None:
            return _seen(method, f"tensor '{name}'", _SELF_DESCRIBED.get(ending))
    if packed is None:
        return None
    dtype = tensors[packed].dtype.value
    method = "FP8" if dtype.startswith("F8") else "packed integers" if coded is None else dtype
    return _seen(method, f"tensor '{packed}' is {dtype}", "fp8" if method == "FP8" else None)


def _seen(method: str, evidence: str, key: str | None = None) -> Quantized:
    return Quantized(method, evidence, key, f"{method} ({evidence})")


def _mlx(tensors: Mapping[str, TensorView]) -> str | None:
    """Scales of MLX: beside a weight of 32-bit words; GPTQ's and AWQ's words are called otherwise."""
    for name in tensors:
        weight = tensors.get(name.removesuffix(".scales") + ".weight") if name.endswith(".scales") else None
        if weight is not None and weight.dtype is DType.U32:
            return name
    return None


def _packed_weight(tensors: Mapping[str, TensorView]) -> str | None:
    """The first weight of integers; buffers of integers, such as positions, are none."""
    has_scales = any(name.endswith(_SCALES) for name in tensors)
    weights: Iterable[str] = (name for name, tensor in tensors.items() if tensor.dtype in _PACKED)
    return next((name for name in weights if name.endswith((".weight", "_proj")) or has_scales), None)
