"""Weights rounded and packed as each format keeps them: what `pack_checkpoint` puts in their place, and the settings."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .packed_checkpoints import Pack, Packed

# The channel that lies in each four bits of a word of AWQ, from the lowest on.
AWQ_CHANNELS = (0, 2, 4, 6, 1, 3, 5, 7)


def rounded(weight: torch.Tensor, bits: int, group: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unsigned codes [n, k], and zero points and float16 scales [n, groups]."""
    n, k = weight.shape
    grouped = weight.float().reshape(n, k // group, group)
    low, high = grouped.amin(-1).clamp(max=0), grouped.amax(-1).clamp(min=0)
    top = 2**bits - 1
    scales = ((high - low) / top).clamp(min=1e-4).to(torch.float16)
    zeros = (-low / scales.float()).round().clamp(0, top)
    codes = ((grouped / scales.float()[..., None]).round() + zeros[..., None]).clamp(0, top)
    return codes.reshape(n, k).to(torch.int64), zeros.to(torch.int64), scales


def dense_words(codes: np.ndarray, bits: int) -> np.ndarray:
    """Codes [r, c] as a stream of bits along each row, from the lowest bit of the first word on."""
    rows = []
    for row in codes.tolist():
        stream = sum(code << (bits * i) for i, code in enumerate(row))
        n_words = -(-len(row) * bits // 32)
        rows.append(np.frombuffer(stream.to_bytes(4 * n_words, "little"), "<i4"))
    return np.stack(rows)


def awq_words(codes: torch.Tensor) -> torch.Tensor:
    """Codes [r, c] of four bits, eight channels in a word."""
    grouped = codes.to(torch.int64).reshape(len(codes), -1, 8)
    packed = sum(grouped[..., channel] << (4 * place) for place, channel in enumerate(AWQ_CHANNELS))
    return packed.to(torch.int32)


def gptq(bits: int, group: int) -> tuple[Pack, dict[str, Any]]:
    def pack(module: str, weight: torch.Tensor) -> Packed:
        codes, zeros, scales = rounded(weight, bits, group)
        held = (zeros - 1) % 2**bits
        parts = {
            ".qweight": torch.from_numpy(dense_words(codes.numpy(), bits).T.copy()),
            ".qzeros": torch.from_numpy(dense_words(held.T.numpy(), bits)),
            ".scales": scales.T.contiguous(),
            ".g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // group,
        }
        return parts, _values(codes, zeros, scales, group)

    return pack, {"quant_method": "gptq", "bits": bits, "group_size": group, "desc_act": False, "sym": False}


def awq(group: int) -> tuple[Pack, dict[str, Any]]:
    def pack(module: str, weight: torch.Tensor) -> Packed:
        codes, zeros, scales = rounded(weight, 4, group)
        parts = {".qweight": awq_words(codes.T), ".qzeros": awq_words(zeros.T), ".scales": scales.T.contiguous()}
        return parts, _values(codes, zeros, scales, group)

    return pack, {"quant_method": "awq", "bits": 4, "group_size": group, "zero_point": True, "version": "gemm"}


def _values(codes: torch.Tensor, zeros: torch.Tensor, scales: torch.Tensor, group: int) -> torch.Tensor:
    return (codes - zeros.repeat_interleave(group, 1)) * scales.float().repeat_interleave(group, 1)


def compressed(format_: str, *, bits: int, group: int, symmetric: bool = True) -> tuple[Pack, dict[str, Any]]:
    """By compressed-tensors itself."""
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = {"num_bits": bits, "type": "int", "symmetric": symmetric, "strategy": "group", "group_size": group}
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    library = BaseCompressor.get_value_from_registry(format_)

    def pack(module: str, weight: torch.Tensor) -> Packed:
        grouped = weight.float().reshape(len(weight), -1, group)
        scales, zeros = calculate_qparams(grouped.amin(-1), grouped.amax(-1), scheme.weights)
        state = {"weight": weight, "weight_scale": scales.to(torch.float16)}
        state |= {} if symmetric else {"weight_zero_point": zeros.to(torch.int8)}
        found = library.compress(state, scheme)
        wide = {**found, "weight_scale": found["weight_scale"].float()}
        return {f".{end}": part for end, part in found.items()}, library.decompress(wide, scheme)["weight"]

    groups = {"group_0": {"targets": ["Linear"], "weights": args, "format": format_}}
    settings = {"quant_method": "compressed-tensors", "format": format_, "config_groups": groups, "ignore": ["lm_head"]}
    return pack, settings


def fp8_blocks(rows: int, columns: int, *, scale_fmt: str = "float") -> tuple[Pack, dict[str, Any]]:
    """By transformers itself, in float32."""
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    quantizer = SimpleNamespace(
        quantization_config=SimpleNamespace(weight_block_size=(rows, columns), scale_fmt=scale_fmt)
    )

    def pack(module: str, weight: torch.Tensor) -> Packed:
        found = Fp8Quantize(quantizer)._quantize_one("x.weight", weight)
        codes, scales = found["x.weight"], found["x.weight_scale_inv"]
        values = Fp8Dequantize(quantizer)._dequantize_one(codes, scales, torch.float32)
        ends = (".weight", ".weight_scale_inv") if weight.ndim == 2 else ("", "_scale_inv")
        return dict(zip(ends, (codes, scales), strict=True)), values

    settings = {"quant_method": "fp8", "weight_block_size": [rows, columns], "activation_scheme": "dynamic"}
    return pack, settings


def nf4(
    kind: str = "nf4", *, nested: bool = True, block: int = 64, storage: torch.dtype = torch.uint8
) -> tuple[Pack, dict[str, Any]]:
    """By bitsandbytes itself, in float32."""
    import bitsandbytes.functional as bnb

    def pack(module: str, weight: torch.Tensor) -> Packed:
        codes, state = bnb.quantize_4bit(
            weight, quant_type=kind, compress_statistics=nested, blocksize=block, quant_storage=storage
        )
        parts = {f".weight.{end}": part for end, part in state.as_dict(packed=True).items()}
        # as one row: of a block longer than a row bitsandbytes 0.50 takes the wrong scale on the CPU
        state.dtype, state.shape = torch.float32, torch.Size((1, weight.numel()))
        return {".weight": codes, **parts}, bnb.dequantize_4bit(codes, state).reshape(weight.shape)

    return pack, {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False}
