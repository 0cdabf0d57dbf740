"""The methods of quantizers whose weights are decoded, and what a checkpoint is once its own is decoded."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ...dtypes import DType
from ...errors import InputError
from ..checkpoint import Checkpoint
from ..quantized import Quantized, quantization_settings
from . import awq, bitsandbytes, compressed_tensors, fp8, gptq
from .taking import Taking, Unpacked

# Reads the settings of a config, empty where it has none, and decodes what it finds.
Method = Callable[[Mapping[str, Any], Taking], None]

# The key of a method, as `Quantized` has it -> what it is called in "quantised as", and what decodes it.
METHODS: Mapping[str, tuple[str, Method]] = {
    "awq": (awq.NAME, awq.unpack),
    "bitsandbytes": (bitsandbytes.NAME, bitsandbytes.unpack),
    "compressedtensors": (compressed_tensors.NAME, compressed_tensors.unpack),
    "gptq": (gptq.NAME, gptq.unpack),
    "fp8": (fp8.NAME, fp8.unpack),
    "fbgemmfp8": (fp8.NAME, fp8.unpack),
    "mxfp8": (fp8.NAME, fp8.unpack),
}


def unpack(found: Quantized, checkpoint: Checkpoint, raw: Mapping[str, Any], *, dtype: DType) -> Unpacked:
    """The tensors of a checkpoint with decoded weights in place of packed ones, and what is wrong with them.

    `dtype` is what a plain checkpoint of the model would be in.
    Raises: InputError for a method that is not decoded, or that the tensors are not of.
    """
    name, method = METHODS.get(found.key or "", ("", None))
    if method is None:
        raise InputError(f"{checkpoint.folder}: {found.sentence}")
    taking = Taking(checkpoint.tensors, dtype)
    method(quantization_settings(raw), taking)
    if not taking.is_any:
        raise InputError(f"{checkpoint.folder}: config.json says {found.method}, the tensors say {found.by_tensors}")
    return taking.result(name)
