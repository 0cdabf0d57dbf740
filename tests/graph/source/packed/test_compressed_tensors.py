"""compressed-tensors' own compressors, and its own dequantization of what they leave, in float32 and as it saves it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.compressors.mxfp6.helpers import unpack_fp6_from_uint8
from compressed_tensors.compressors.nvfp4.helpers import unpack_fp4_from_uint8
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from compressed_tensors.quantization.lifecycle.forward import dequantize
from compressed_tensors.quantization.utils import calculate_qparams
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.opening import open_graph
from support.packed_checkpoints import Packed, check, configure, pack_checkpoint, stored
from support.refusals import refused
from support.safetensors_files import edit_tensors

GATE = "model.layers.0.feed_forward.w1"
INT = {"type": "int", "symmetric": True, "dynamic": False}
FLOAT = {"type": "float", "symmetric": True, "dynamic": False}


def group(args: dict[str, Any], format_: str, *, targets: tuple[str, ...] = ("Linear",), **more: Any) -> dict[str, Any]:
    return {"targets": list(targets), "weights": args, "format": format_, **more}


def settings(*groups: dict[str, Any], ignore: tuple[str, ...] = ("lm_head",), **more: Any) -> dict[str, Any]:
    formats = {each["format"] for each in groups}
    return {
        "quant_method": "compressed-tensors",
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": {f"group_{i}": each for i, each in enumerate(groups)},
        "ignore": list(ignore),
        **more,
    }


def by_library(args: dict[str, Any], format_: str, *, scales: torch.dtype = torch.bfloat16) -> Any:
    """Compresses and decompresses a weight as the library does; the values are those it computes in float32."""
    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
    library = BaseCompressor.get_value_from_registry(format_)

    def pack(module: str, weight: torch.Tensor) -> Packed:
        state = {"weight": weight, **_parameters(weight, scheme.weights, format_, scales)}
        packed = {end: part for end, part in library.compress(state, scheme).items() if part is not None}
        return {f".{end}": part for end, part in packed.items()}, _values(packed, scheme, library, format_)

    return pack


def _parameters(weight: torch.Tensor, args: Any, format_: str, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    n, k = weight.shape
    if args.strategy == "block":
        rows, columns = args.block_structure
        blocks = weight.float().reshape(n // rows, rows, k // columns, columns)
        low, high = blocks.amin((1, 3)), blocks.amax((1, 3))
    elif args.strategy == "tensor":
        low, high = weight.float().min().reshape(1), weight.float().max().reshape(1)
    else:
        grouped = weight.float().reshape(n, -1, args.group_size or k)
        low, high = grouped.amin(-1), grouped.amax(-1)
    most = torch.maximum(low.abs(), high.abs())
    if format_.startswith("nvfp4"):
        divisor = (448 * 6 / most.max()).reshape(1)
        return {"weight_scale": (most * divisor / 6).to(torch.float8_e4m3fn).to(dtype), "weight_global_scale": divisor}
    if format_.startswith("mx"):
        return {"weight_scale": torch.exp2(torch.floor(torch.log2(most))).to(dtype)}
    scale, zero = calculate_qparams(low, high, args)
    found = {"weight_scale": scale.to(dtype)}
    return found if args.symmetric else {**found, "weight_zero_point": zero.to(torch.int8)}


def _values(packed: dict[str, torch.Tensor], scheme: Any, library: Any, format_: str) -> torch.Tensor:
    """The library's dequantization with float32 scales, of which its own output is the rounding."""
    theirs = library.decompress(packed, scheme)["weight"]
    if "fp4" in format_ or "fp6" in format_:
        codes = packed["weight_packed"]
        n, bits = len(codes), 6 if "fp6" in format_ else 4
        unpacked = (unpack_fp6_from_uint8 if bits == 6 else unpack_fp4_from_uint8)(
            codes, n, codes.shape[1] * 8 // bits, torch.float32
        )
        scale = packed["weight_scale"]
        scale = torch.exp2(scale.float() - 127) if format_.startswith("mx") else scale.float()
        values = dequantize(
            unpacked, scale, args=scheme.weights, global_scale=packed.get("weight_global_scale"), dtype=torch.float32
        )
    else:
        wide = {
            end: part.float() if end == "weight_scale" and part.is_floating_point() else part
            for end, part in packed.items()
        }
        values = library.decompress(wide, scheme)["weight"].float()
    assert torch.equal(values.to(theirs.dtype), theirs)
    return values


SCHEMES = {
    **{f"int{bits}-g32": (INT | {"num_bits": bits, "strategy": "group", "group_size": 32}, "pack-quantized") for bits in range(2, 9)},
    **{f"int{bits}-g64-asym": (INT | {"num_bits": bits, "strategy": "group", "group_size": 64, "symmetric": False}, "pack-quantized") for bits in (3, 4, 5, 8)},
    "int4-channel": (INT | {"num_bits": 4, "strategy": "channel"}, "pack-quantized"),
    "int4-channel-asym": (INT | {"num_bits": 4, "strategy": "channel", "symmetric": False}, "pack-quantized"),
    "int4-tensor": (INT | {"num_bits": 4, "strategy": "tensor"}, "pack-quantized"),
    "int8": (INT | {"num_bits": 8, "strategy": "channel"}, "int-quantized"),
    "int8-asym": (INT | {"num_bits": 8, "strategy": "channel", "symmetric": False}, "int-quantized"),
    "int8-naive-g32": (INT | {"num_bits": 8, "strategy": "group", "group_size": 32}, "naive-quantized"),
    "fp8-channel": (FLOAT | {"num_bits": 8, "strategy": "channel"}, "float-quantized"),
    "fp8-tensor": (FLOAT | {"num_bits": 8, "strategy": "tensor"}, "float-quantized"),
    "fp8-naive-g32": (FLOAT | {"num_bits": 8, "strategy": "group", "group_size": 32}, "naive-quantized"),
    "fp8-block": (FLOAT | {"num_bits": 8, "strategy": "block", "block_structure": [64, 64]}, "float-quantized"),
    "nvfp4": (FLOAT | {"num_bits": 4, "strategy": "tensor_group", "group_size": 16}, "nvfp4-pack-quantized"),
    "mxfp4": (FLOAT | {"num_bits": 4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}, "mxfp4-pack-quantized"),
    "mxfp6": (FLOAT | {"num_bits": 6, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}, "mxfp6-pack-quantized"),
    "mxfp8": (FLOAT | {"num_bits": 8, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}, "mxfp8-quantized"),
}  # fmt: skip
WORDS = {"int4-g32": "int4 g32", "int5-g64-asym": "int5 g64 asymmetric", "int8": "int8 a scale a row", "fp8-tensor": "FP8 a scale a tensor", "fp8-block": "FP8 in blocks of 64x64", "nvfp4": "NVFP4 g16"}  # fmt: skip


@pytest.mark.parametrize("name", SCHEMES)
def test_every_scheme_is_the_librarys(dense: Path, name: str) -> None:
    args, format_ = SCHEMES[name]
    graph = check(dense, pack_checkpoint(dense, by_library(args, format_), settings(group(args, format_))))
    assert graph.quantised_as is not None
    assert graph.quantised_as.startswith("compressed-tensors ")
    assert graph.quantised_as.endswith(WORDS.get(name, ""))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
def test_scales_of_other_types(dense: Path, dtype: torch.dtype) -> None:
    args, format_ = SCHEMES["int4-g32"]
    expected = pack_checkpoint(dense, by_library(args, format_, scales=dtype), settings(group(args, format_)))
    check(dense, expected, dtype=DType.F16 if dtype is torch.float16 else DType.F32)


def test_groups_are_found_by_name_pattern_and_class(dense: Path) -> None:
    """Three schemes in one checkpoint, and modules without any."""
    by_name, by_pattern, by_class = (SCHEMES[name] for name in ("int8", "fp8-channel", "int4-g32"))
    said = settings(
        group(*by_class),
        group(*by_pattern, targets=(r"re:.*self_attn\..*_proj",)),
        group(*by_name, targets=(GATE,)),
        ignore=("re:.*w2$",),
    )

    def pack(module: str, weight: torch.Tensor) -> Packed:
        scheme = by_name if module == GATE else by_pattern if "self_attn" in module else by_class
        return by_library(*scheme)(module, weight)

    expected = pack_checkpoint(dense, pack, said, only=("w1", "w3", "conv", "self_attn"))
    graph = check(dense, expected)
    assert graph.quantised_as == "compressed-tensors int4 g32 and FP8 a scale a row and int8 a scale a row"


def test_a_token_table_has_a_class_of_its_own(dense: Path) -> None:
    table, linear = SCHEMES["int8-naive-g32"], SCHEMES["int4-g32"]
    said = settings(group(*linear), group(*table, targets=("Embedding",)))

    def pack(module: str, weight: torch.Tensor) -> Packed:
        return by_library(*(table if module == "model.embed_tokens" else linear))(module, weight)

    expected = pack_checkpoint(dense, pack, said, has_table=True)
    assert "model.embed_tokens.weight" in expected
    check(dense, expected)


def test_formats_of_mixed_groups_are_inferred(dense: Path) -> None:
    args, format_ = SCHEMES["fp8-channel"]
    said = settings(group(args, "mixed-precision"), format="mixed-precision")
    check(dense, pack_checkpoint(dense, by_library(args, format_), said))


def test_scales_of_activations_and_caches_are_left_out(dense: Path) -> None:
    args, format_ = SCHEMES["fp8-tensor"]
    pack = by_library(args, format_)

    def with_scales(module: str, weight: torch.Tensor) -> Packed:
        parts, values = pack(module, weight)
        return {**parts, ".input_scale": torch.ones(1)}, values

    graph = check(dense, pack_checkpoint(dense, with_scales, settings(group(args, format_))))
    assert any("scales activations, not weights: not used" in note for note in graph.notes)


def test_columns_in_an_order_of_their_own(dense: Path) -> None:
    """`weight_g_idx`, which the library wrote until 0.17: column c takes scale and zero point of group g_idx[c]."""
    args, format_ = SCHEMES["int4-g64-asym"]
    pack, order = by_library(args, format_), {}

    def reordered(module: str, weight: torch.Tensor) -> Packed:
        parts, values = pack(module, weight)
        order[module] = torch.randperm(weight.shape[1], generator=torch.Generator().manual_seed(1))
        # a weight whose columns are shuffled after they were rounded has codes and groups shuffled alike
        shuffled = BaseCompressor.get_value_from_registry(format_)
        scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**args))
        wide = {end[1:]: part for end, part in parts.items()}
        columns = torch.arange(weight.shape[1]) // 64
        codes = values / wide["weight_scale"].float().repeat_interleave(64, 1)
        moved = codes[:, order[module]].round()
        zeros = shuffled.decompress({**wide, "weight_scale": torch.ones_like(wide["weight_scale"])}, scheme)[
            "weight_zero_point"
        ]
        raw = (moved + zeros.float().repeat_interleave(64, 1)[:, order[module]]).to(torch.int8)
        from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

        parts |= {".weight_packed": pack_to_int32(raw, 4), ".weight_g_idx": columns[order[module]].to(torch.int32)}
        return parts, values[:, order[module]]

    check(dense, pack_checkpoint(dense, reordered, settings(group(args, format_))))


def test_faults_of_the_config_and_the_tensors_are_told_together(dense: Path) -> None:
    args, format_ = SCHEMES["int4-g32"]
    pack_checkpoint(dense, by_library(args, format_), settings(group(args, format_)))
    start = "model.layers.1.self_attn."

    def damage(tensors: Any) -> None:
        del tensors[f"{GATE}.weight_scale"]
        tensors[start + "q_proj.weight_scale"] = stored(torch.ones(128, 3, dtype=torch.bfloat16))
        tensors[start + "k_proj.weight_shape"] = stored(torch.tensor([64, 256]))
        del tensors[start + "v_proj.weight_packed"]
        tensors[start + "out_proj.weight_packed"] = stored(torch.zeros(128, 16, dtype=torch.int64))

    edit_tensors(dense / "model.safetensors", damage)
    configure(
        dense,
        quantization_config=settings(
            group(args, format_),
            group(args | {"num_bits": 9}, format_, targets=("a",)),
            group(args, "marlin-24", targets=("b",)),
            group(args | {"strategy": "attn_head"}, format_, targets=("c",)),
            ignore=("model.layers.0.conv.in_proj",),
            format="pack-quantized",
        ),
    )
    with refused(
        "group_1 of config_groups has num_bits 9 and type 'int': expected 1 to 8 bits in pack-quantized",
        "group_2 of config_groups has the format 'marlin-24': expected one of pack-quantized, ",
        "group_3 of config_groups has the strategy 'attn_head': expected one of tensor, ",
        "the weights of 'model.layers.0.conv.in_proj' are packed, and no group of the quantization_config has them",
        f"tensor '{GATE}.weight_scale' is missing (expected shape [256, 4])",
        f"tensor '{start}q_proj.weight_scale' has the wrong shape: expected [128, 4], found [128, 3]",
        f"tensor '{start}k_proj.weight_packed' has shape [64, 16]: expected [64, 32] for 4 bits of the [64, 256] that",
        f"tensor '{start}v_proj.weight_packed' is missing",
        f"tensor '{start}out_proj.weight_packed' is I64: expected I32",
    ):
        open_graph(dense)


def test_a_group_of_activations_alone_has_no_weights(dense: Path) -> None:
    args, format_ = SCHEMES["int4-g32"]
    said = settings(group(args, format_))
    said["config_groups"]["group_0"]["weights"] = None
    pack_checkpoint(dense, by_library(args, format_), said)
    with refused("the weights of 'model.layers.0.conv.in_proj' and 11 others are packed, and no group of the"):
        open_graph(dense)


def test_rotated_weights_are_refused(dense: Path) -> None:
    args, format_ = SCHEMES["int4-g32"]
    said = settings(group(args, format_), transform_config={"config_groups": {"R1": {}}})
    pack_checkpoint(dense, by_library(args, format_), said)
    with refused("the quantization_config has a transform_config: weights that were rotated are not read"):
        open_graph(dense)


@pytest.mark.parametrize("name", ["int4-g32", "int4-g64-asym", "int8", "int8-asym", "int3-g64-asym", "int4-tensor"])
def test_a_grid_is_offered(dense: Path, name: str) -> None:
    args, format_ = SCHEMES[name]
    expected = pack_checkpoint(dense, by_library(args, format_), settings(group(args, format_)))
    for weight in open_graph(dense).weights():
        view = weight.view
        if view.name in expected:
            rows = view.grid_rows(3, 20)
            spread = [np.repeat(part, view.grid.group, axis=1) for part in (rows.scales, rows.shifts)]
            values = (rows.codes - spread[1]) * spread[0]
            np.testing.assert_array_equal(values, view.rows(3, 20))
            assert rows.codes.max() <= view.grid.top
            assert view.grid.zero == (None if "asym" in name else 2 ** (view.grid.bits - 1))
