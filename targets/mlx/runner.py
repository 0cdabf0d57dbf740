"""Runs an MLX folder in mlx-lm, in float32: the CPU's 16-bit kernels add up in 16 bits and hide what weights do."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.utils import load_model

from ...convert.errors import BackendError, InputError
from ...convert.model.dtypes import Float32
from ..target import Runner

# Before this mlx-lm routed LFM2-MoE by softmax and scaled experts with their bias (its issue 1883).
_LEAST_VERSION = (0, 32)


class MlxRunner(Runner):
    """One model with its caches.

    MLX compiles kernels into the temporary folder without a lock, so this process gets one of its own.
    """

    def __init__(self, folder: Path) -> None:
        _refuse_old(metadata.version("mlx-lm"))
        self._temporary = tempfile.TemporaryDirectory(prefix="lfm-mlx-")
        self._before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = self._temporary.name
        try:
            self._model, _ = load_model(folder)
        except Exception as error:  # the library raises its own kinds
            self.close()
            raise InputError(f"{folder}: mlx-lm refuses it: {error}") from None
        self._model.set_dtype(mx.float32)
        self.reset()

    @property
    def backend(self) -> str:
        device = "CPU" if mx.default_device() == mx.Device(mx.cpu) else "GPU"
        return f"mlx {metadata.version('mlx')} {device}, mlx-lm {metadata.version('mlx-lm')}, float32"

    def reset(self) -> None:
        self._cache = self._model.make_cache()

    def extend(self, token_ids: Sequence[int]) -> Float32:
        logits = self._model(mx.array([list(token_ids)]), cache=self._cache)[0]
        return np.array(logits.astype(mx.float32))

    def close(self) -> None:
        if self._before is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self._before
        self._temporary.cleanup()


def _refuse_old(version: str) -> None:
    """Raises BackendError for an mlx-lm that computes something else than LFM2."""
    if tuple(int(number) for number in version.split(".")[:2]) < _LEAST_VERSION:
        raise BackendError(
            f'mlx-lm {version} routes LFM2\'s experts wrongly: at least 0.32 is needed, pip install "lfm-convert[mlx]"'
        )
