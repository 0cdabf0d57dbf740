"""Logits of a GGUF with a LoRA file beside it, by llama.cpp's own adapter functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from lfm_convert.targets.gguf.runner import LlamaRunner, load_library


class LoraRunner(LlamaRunner):
    """Every context of it has the adapter. Raises: RuntimeError if llama.cpp does not take the file."""

    def __init__(self, path: Path, lora: Path, *, threads: int) -> None:
        super().__init__(path, threads=threads)
        library = load_library()
        library.llama_adapter_lora_init.restype = ctypes.c_void_p
        library.llama_adapter_lora_init.argtypes = [ctypes.c_void_p, ctypes.c_char_p]
        self._adapter = library.llama_adapter_lora_init(self._model, str(lora).encode())
        if not self._adapter:
            raise RuntimeError(f"{lora}: llama.cpp does not load it")

    def _open(self, n_tokens: int, **how: object) -> int:
        context = super()._open(n_tokens, **how)
        set_adapters = load_library().llama_set_adapters_lora
        set_adapters.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p]
        set_adapters.restype = ctypes.c_int32
        adapters, scales = (ctypes.c_void_p * 1)(self._adapter), (ctypes.c_float * 1)(1.0)
        assert set_adapters(context, adapters, 1, scales) == 0
        return context


def logits_with(path: Path, lora: Path | None, token_ids: Sequence[int]) -> np.ndarray:
    """[n, V] on one thread."""
    runner = LlamaRunner(path, threads=1) if lora is None else LoraRunner(path, lora, threads=1)
    try:
        return np.array(runner.logits(token_ids))
    finally:
        runner.close()
