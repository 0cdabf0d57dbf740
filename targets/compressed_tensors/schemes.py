"""The config's `quantization_config`: what is stored how, in the words of compressed-tensors.

Source: compressed-tensors `quantization/quant_config.py`, `quantization/quant_args.py`, `quantization/quant_scheme.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...graph.families.places import EXPERT
from ...quantize.encoding import Encoding
from ...quantize.encodings.ct_base import CtEncoding
from ...quantize.encodings.ct_fp4 import MxFp4, NvFp4
from ...quantize.encodings.ct_fp8 import SQUARE, ChannelFp8, SquareFp8
from ...quantize.encodings.ct_int import ChannelInt8, GroupInt

METHOD, FIELD = "compressed-tensors", "quantization_config"
_MIXED = "mixed-precision"
_INT, _FLOAT = "int", "float"
# What every argument is unless it is said: the library's reader demands none of them, vLLM's and SGLang's several.
_ARGUMENTS: Mapping[str, Any] = {
    "num_bits": 8, "type": _INT, "symmetric": True, "group_size": None, "strategy": None, "block_structure": None,
    "dynamic": False, "actorder": None, "scale_dtype": None, "zp_dtype": None, "observer": None, "observer_kwargs": {},
}  # fmt: skip


@dataclass(frozen=True)
class StoredModule:
    """One module with a matrix: its path, with "{e}" where an expert's number stands, and what it is stored as."""

    path: str
    encoding: Encoding


def quantization_config(modules: Sequence[StoredModule], *, ignored: Sequence[str], rounds: bool) -> dict[str, Any]:
    """The field for some modules; the scheme of most is that of all that are not named otherwise.

    `ignored` are modules that another reader might take for matrices of a layer; `rounds` says whether activations are
    rounded where the encoding's kernels do.
    """
    alike: dict[str, list[StoredModule]] = {}
    for module in modules:
        alike.setdefault(module.encoding.name, []).append(module)
    coded = [each for each in alike.values() if isinstance(each[0].encoding, CtEncoding)]
    floats = [pattern(m.path) for each in alike.values() if each not in coded for m in each]
    *others, most = sorted(coded, key=len) or [[]]
    schemes = [_scheme(each, [pattern(module.path) for module in each], rounds=rounds) for each in others]
    # A reader takes the first target that fits: those that are named come before the class of all.
    schemes += [_scheme(most, ["Linear"], rounds=rounds)] if most else []
    formats = {scheme["format"] for scheme in schemes}
    return {
        "config_groups": {f"group_{i}": scheme for i, scheme in enumerate(schemes)},
        "format": formats.pop() if len(formats) == 1 else _MIXED,
        "global_compression_ratio": None,
        "ignore": [*ignored, *floats],
        "kv_cache_scheme": None,
        "quant_method": METHOD,
        "quantization_status": "compressed",
    }


def pattern(path: str) -> str:
    """A module's path as the lists of the config name it; that of all experts is a regular expression."""
    if EXPERT not in path:
        return path
    return "re:" + path.replace(".", r"\.").replace(EXPERT, r"\d+") + "$"


def _scheme(modules: Sequence[StoredModule], targets: list[str], *, rounds: bool) -> dict[str, Any]:
    format_, weights, activations = _arguments(modules[0].encoding)
    return {
        "format": format_,
        "input_activations": {**_ARGUMENTS, **activations} if activations and rounds else None,
        "output_activations": None,
        "targets": targets,
        "weights": {**_ARGUMENTS, **weights, "observer": "memoryless_minmax"},
    }


def _arguments(encoding: Encoding) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Format, arguments of the weights and of the activations, where they differ from the usual."""
    if isinstance(encoding, GroupInt):
        group = {"strategy": "group", "group_size": encoding.block}
        return "pack-quantized", {"num_bits": encoding.bits, "symmetric": encoding.is_symmetric, **group}, {}
    if isinstance(encoding, ChannelInt8):
        return "int-quantized", {"strategy": "channel"}, {"strategy": "token", "dynamic": True}
    if isinstance(encoding, ChannelFp8):
        token = {"type": _FLOAT, "strategy": "token", "dynamic": True}
        return "float-quantized", {"type": _FLOAT, "strategy": "channel"}, token
    if isinstance(encoding, SquareFp8):
        squares = {"type": _FLOAT, "strategy": "block", "block_structure": [SQUARE, SQUARE]}
        return "float-quantized", squares, {**_group(8, SQUARE), "dynamic": True}
    if isinstance(encoding, NvFp4):
        types = {"scale_dtype": "torch.float8_e4m3fn", "zp_dtype": "torch.float8_e4m3fn"}
        return "nvfp4-pack-quantized", {**_group(4, encoding.block), "strategy": "tensor_group", **types}, {}
    if isinstance(encoding, MxFp4):
        weights = {**_group(4, encoding.block), "scale_dtype": "torch.uint8", "zp_dtype": "torch.uint8"}
        return "mxfp4-pack-quantized", weights, {**weights, "dynamic": True}
    raise ValueError(f"{encoding.name} is no scheme of compressed-tensors")


def _group(bits: int, group: int) -> dict[str, Any]:
    return {"num_bits": bits, "type": _FLOAT, "strategy": "group", "group_size": group}
