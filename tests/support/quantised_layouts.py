"""Checkpoints as quantizers save them, by hand: the names, dtypes and shapes of each format, with bytes of zero.

`LAYOUTS` maps a name to (method that must be named, `quantization_config`, change of one linear weight).
Source: a checkpoint of each format on a hub; compressed-tensors 0.20, bitsandbytes 0.49, autoawq, gptqmodel, mlx-lm 0.32,
torchao 0.17, optimum-quanto 0.2, hqq 0.2 as facts and their own writers give them.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Mapping
from typing import Any

from .safetensors_files import ITEMSIZE, Tensor

# From the shape [out, in] of a weight to what stands in its place, by the ends that follow the module's name.
Parts = Callable[[int, int], dict[str, Tensor]]


def zeros(dtype: str, *shape: int) -> Tensor:
    return Tensor(dtype, shape, bytes(math.prod(shape) * ITEMSIZE[dtype]))


def _bnb4(n: int, k: int) -> dict[str, Tensor]:
    sizes = {"shape": [n, k], "blocksize": 64, "quant_type": "nf4", "dtype": "bfloat16"}
    state = json.dumps({**sizes, "nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.1}).encode()
    n_blocks = math.ceil(n * k / 64)
    return {
        ".weight": zeros("U8", n * k // 2, 1),
        ".weight.absmax": zeros("U8", n_blocks),
        ".weight.nested_absmax": zeros("F32", math.ceil(n_blocks / 256)),
        ".weight.nested_quant_map": zeros("F32", 256),
        ".weight.quant_map": zeros("F32", 16),
        ".weight.quant_state.bitsandbytes__nf4": Tensor("U8", (len(state),), state),
    }


def _bnb8(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("I8", n, k), ".SCB": zeros("F32", n), ".weight_format": zeros("U8")}


def _fp8(n: int, k: int) -> dict[str, Tensor]:
    scales = zeros("F32", math.ceil(n / 128), math.ceil(k / 128))
    return {".weight": zeros("F8_E4M3", n, k), ".weight_scale_inv": scales}


def _ct_fp8(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("F8_E4M3", n, k), ".weight_scale": zeros("BF16", n, 1)}


def _ct_packed(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".weight_packed": zeros("I32", n, k // 8),
        ".weight_scale": zeros("BF16", n, k // 32),
        ".weight_shape": Tensor("I64", (2,), struct.pack("<2q", n, k)),
    }


def _ct_int8(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("I8", n, k), ".weight_scale": zeros("BF16", n, 1)}


def _nvfp4(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".weight": zeros("U8", n, k // 2),
        ".weight_scale": zeros("F8_E4M3", n, k // 16),
        ".weight_scale_2": zeros("F32"),
        ".input_scale": zeros("F32"),
    }


def _ct_nvfp4(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".weight_packed": zeros("U8", n, k // 2),
        ".weight_scale": zeros("F8_E4M3", n, k // 16),
        ".weight_global_scale": zeros("F32", 1),
    }


def _mxfp4(n: int, k: int) -> dict[str, Tensor]:
    return {".weight_blocks": zeros("U8", n, k // 32, 16), ".weight_scales": zeros("U8", n, k // 32)}


def _mxfp8(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("F8_E4M3", n, k), ".weight_scale": zeros("F8_E8M0", n, k // 32)}


def _mlx(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".weight": zeros("U32", n, k // 8),
        ".scales": zeros("BF16", n, k // 64),
        ".biases": zeros("BF16", n, k // 64),
    }


def _mlx_mxfp4(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("U32", n, k // 8), ".scales": zeros("U8", n, k // 32)}


def _awq(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".qweight": zeros("I32", k, n // 8),
        ".qzeros": zeros("I32", k // 32, n // 8),
        ".scales": zeros("F16", k // 32, n),
    }


def _gptq(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".qweight": zeros("I32", k // 8, n),
        ".qzeros": zeros("I32", k // 32, n // 8),
        ".scales": zeros("F16", k // 32, n),
        ".g_idx": zeros("I32", k),
    }


def _torchao(n: int, k: int) -> dict[str, Tensor]:
    return {"._weight_qdata": zeros("I8", n, k), "._weight_scale": zeros("F32", n, 1)}


def _quanto(n: int, k: int) -> dict[str, Tensor]:
    return {
        ".weight._data": zeros("I8", n, k),
        ".weight._scale": zeros("BF16", n, 1),
        ".input_scale": zeros("F32"),
        ".output_scale": zeros("F32"),
    }


def _hqq(n: int, k: int) -> dict[str, Tensor]:
    return {".W_q": zeros("U8", n * k // 64 // 2, 64), ".scale": zeros("BF16", n * k // 64, 1)}


def _eetq(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("I8", k, n), ".weight_scales": zeros("F16", n)}


def _bitnet(n: int, k: int) -> dict[str, Tensor]:
    return {".weight": zeros("U8", n // 4, k), ".weight_scale": zeros("BF16", 1)}


def _packed(format_: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights, "input_activations": None}}
    settings = {"format": format_, "quantization_status": "compressed", "config_groups": groups, "ignore": ["lm_head"]}
    return {"quant_method": "compressed-tensors", **settings}


# Name -> (named with its config, named by tensors alone, quantization_config, parts).
LAYOUTS: Mapping[str, tuple[str, str, dict[str, Any], Parts]] = {
    "bitsandbytes-4bit": ("bitsandbytes (4 bit)", "bitsandbytes (4 bit)", {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}, _bnb4),
    "bitsandbytes-8bit": ("bitsandbytes (8 bit)", "bitsandbytes (8 bit)", {"quant_method": "bitsandbytes", "load_in_8bit": True}, _bnb8),
    "fp8": ("FP8", "FP8", {"quant_method": "fp8", "weight_block_size": [128, 128], "fmt": "e4m3"}, _fp8),
    "compressed-fp8": ("compressed-tensors", "FP8", _packed("float-quantized", num_bits=8, type="float", strategy="channel"), _ct_fp8),
    "compressed-int4": ("compressed-tensors", "compressed-tensors", _packed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=32), _ct_packed),
    "compressed-int8": ("compressed-tensors", "packed integers", _packed("int-quantized", num_bits=8, type="int", strategy="channel"), _ct_int8),
    "compressed-nvfp4": ("compressed-tensors (NVFP4)", "compressed-tensors", _packed("nvfp4-pack-quantized", num_bits=4, type="float", strategy="tensor_group", group_size=16), _ct_nvfp4),
    "modelopt-nvfp4": ("ModelOpt (NVFP4)", "ModelOpt NVFP4", {"quant_method": "modelopt", "quant_algo": "NVFP4"}, _nvfp4),
    "mxfp4": ("MXFP4", "MXFP4", {"quant_method": "mxfp4"}, _mxfp4),
    "mxfp8": ("MXFP8", "FP8", {"quant_method": "mxfp8"}, _mxfp8),
    "mlx": ("MLX", "MLX", {"group_size": 64, "bits": 4, "mode": "affine"}, _mlx),
    "mlx-mxfp4": ("MLX", "MLX", {"group_size": 32, "bits": 4, "mode": "mxfp4"}, _mlx_mxfp4),
    "awq": ("AWQ", "AWQ or GPTQ", {"quant_method": "awq", "bits": 4, "group_size": 32}, _awq),
    "gptq": ("GPTQ", "GPTQ", {"quant_method": "gptq", "bits": 4, "group_size": 32}, _gptq),
    "autoround": ("AutoRound", "AWQ or GPTQ", {"quant_method": "auto-round", "bits": 4}, _awq),
    "torchao": ("torchao", "torchao", {"quant_method": "torchao", "quant_type": {"default": {}}}, _torchao),
    "quanto": ("quanto", "quanto", {"quant_method": "quanto", "weights": "int8"}, _quanto),
    "hqq": ("HQQ", "HQQ", {"quant_method": "hqq", "quant_config": {}}, _hqq),
    "eetq": ("EETQ", "EETQ", {"quant_method": "eetq"}, _eetq),
    "bitnet": ("BitNet", "packed integers", {"quant_method": "bitnet"}, _bitnet),
    "unheard-of": ("tomorrow", "packed integers", {"quant_method": "tomorrow"}, _ct_int8),
}  # fmt: skip
# Those that are decoded: by what the config says, and by the tensors alone.
READ_BY_CONFIG = {"bitsandbytes-4bit", "bitsandbytes-8bit", "fp8", "compressed-fp8", "compressed-int4", "compressed-int8", "compressed-nvfp4", "mxfp8", "awq", "gptq", "mlx", "mlx-mxfp4"}  # fmt: skip
READ_BY_TENSORS = {"bitsandbytes-4bit", "bitsandbytes-8bit", "fp8", "compressed-fp8", "mxfp8"}


def quantise(tensors: dict[str, Tensor], parts: Parts) -> None:
    """Puts a format's tensors in the place of every linear weight of the layers."""
    linear = [name for name, tensor in tensors.items() if ".layers." in name and len(tensor.shape) == 2]
    for name in linear:
        n, k = tensors.pop(name).shape
        tensors |= {name.removesuffix(".weight") + end: tensor for end, tensor in parts(n, k).items()}
