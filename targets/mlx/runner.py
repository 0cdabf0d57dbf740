"""Runs an MLX folder in mlx-lm, in float32: the CPU's 16-bit kernels add up in 16 bits and hide what weights do."""

from __future__ import annotations

import contextlib
import copy
import glob
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import (
    ArraysCache,
    BatchKVCache,
    BatchRotatingKVCache,
    KVCache,
    RotatingKVCache,
    make_prompt_cache,
)
from mlx_lm.utils import load_config, load_model, load_tokenizer
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.errors import BackendError, InputError
from ...graph.source.stops import as_ids
from ...graph.source.tokenizer import TOKENIZER_FILE
from ..target import WatchedRunner
from .model import Model, ModelArgs

# Before this mlx-lm routed mixtures by softmax and scaled experts with their bias (its issue 1883).
_LEAST_VERSION = (0, 32)


class MlxRunner(WatchedRunner):
    """One model with its caches.

    MLX compiles kernels into the temporary folder without a lock, so this process gets one of its own.
    """

    batches: Sequence[str] = ("left",)

    def __init__(self, folder: Path, *, own_class: bool) -> None:
        """`own_class` runs the model by our own class, where mlx-lm has none; never by a file of the artifact."""
        _refuse_old(metadata.version("mlx-lm"))
        self._folder = folder
        self._own_class = own_class
        self._temporary = tempfile.TemporaryDirectory(prefix="lfm-mlx-")
        self._before = os.environ.get("TMPDIR")
        os.environ["TMPDIR"] = self._temporary.name
        try:
            with _readable(folder) as path:
                classes = {"get_model_classes": lambda config: (Model, ModelArgs)} if own_class else {}
                self._model = load_model(path, model_config={"model_file": None}, **classes)[0]
        except Exception as error:  # the library raises its own kinds
            self.close()
            raise InputError(f"{folder}: mlx-lm refuses it: {error}") from None
        self._model.set_dtype(mx.float32)
        self.reset()

    @property
    def backend(self) -> str:
        device = "CPU" if mx.default_device() == mx.Device(mx.cpu) else "GPU"
        own = " with lfm-convert's class" if self._own_class else ""
        return f"mlx {metadata.version('mlx')} {device}, mlx-lm {metadata.version('mlx-lm')}{own}, float32"

    def reset(self) -> None:
        self._cache = make_prompt_cache(self._model)

    def stops(self) -> dict[str, list[int]]:
        """As `mlx_lm.load` reads them: of both configs, and the tokenizer's own."""
        stated = load_config(self._folder).get("eos_token_id")
        if not (self._folder / TOKENIZER_FILE).is_file():
            return {"mlx-lm": list(as_ids(stated))}
        try:
            with _readable(self._folder) as path:
                tokenizer = load_tokenizer(path, eos_token_ids=stated)
        except Exception as error:  # the library raises its own kinds
            raise InputError(f"{self._folder}: mlx-lm refuses its tokenizer: {error}") from None
        return {"mlx-lm": sorted(tokenizer.eos_token_ids)}

    def another(self) -> MlxRunner:
        """Caches lie outside the model, so that one serves any number of conversations."""
        other = copy.copy(self)
        other.reset()
        return other

    def extend(self, token_ids: Sequence[int]) -> Float32:
        return self._run([list(token_ids)], self._cache)[0]

    def _run(self, rows: list[list[int]], cache: Any) -> Float32:
        return np.array(self._model(mx.array(rows), cache=cache).astype(mx.float32))

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Rows of zeros padded on the left, as `mlx_lm.generate`'s batches are; each is continued by its last token."""
        longest = max(map(len, prompts))
        gaps = [longest - len(prompt) for prompt in prompts]
        cache = [_padded(each, gaps) for each in make_prompt_cache(self._model)]
        first = self._run([[0] * gap + list(prompt[:-1]) for gap, prompt in zip(gaps, prompts, strict=True)], cache)
        last = self._run([list(prompt[-1:]) for prompt in prompts], cache)
        rows = np.concatenate([first, last], axis=1)
        return [row[gap:] for gap, row in zip(gaps, rows, strict=True)]

    @contextlib.contextmanager
    def watching(self) -> Iterator[Callable[[int], dict[int, NDArray[np.int64]] | None]]:
        """What each mixture hands to its experts, seen by a module between the two."""
        modules = ((i, module) for i, layer in enumerate(self._model.layers) for module in layer.children().values())
        mixtures = {i: module for i, module in modules if hasattr(module, "switch_mlp")}
        watched = {i: _Watched(mixture.switch_mlp) for i, mixture in mixtures.items()}
        for i, mixture in mixtures.items():
            mixture.switch_mlp = watched[i]
        try:
            yield lambda n: {i: each.chosen[-n:] for i, each in watched.items()} or None
        finally:
            for i, mixture in mixtures.items():
                mixture.switch_mlp = watched[i].inner

    def close(self) -> None:
        if self._before is None:
            os.environ.pop("TMPDIR", None)
        else:
            os.environ["TMPDIR"] = self._before
        self._temporary.cleanup()


def _padded(cache: Any, gaps: list[int]) -> Any:
    """The cache of one layer for rows with gaps on their left, in place of that for one row."""
    if isinstance(cache, RotatingKVCache):
        return BatchRotatingKVCache(cache.max_size, gaps)
    return BatchKVCache(gaps) if isinstance(cache, KVCache) else ArraysCache(len(cache.cache), left_padding=gaps)


class _Watched(nn.Module):
    """Experts that keep which of them each token of the last call was sent to: [n, top_k]."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.chosen = np.empty((0, 0), np.int64)

    def __call__(self, x: mx.array, chosen: mx.array) -> mx.array:
        self.chosen = np.array(chosen, np.int64).reshape(-1, chosen.shape[-1])
        out: mx.array = self.inner(x, chosen)
        return out


@contextlib.contextmanager
def _readable(folder: Path) -> Iterator[Path]:
    """A path by which the folder can be loaded: from inside where its name is a shell's pattern, or no UTF-8.

    mlx-lm takes a folder for such a pattern; MLX and tokenizers take names for UTF-8.
    """
    if str(folder).encode(errors="ignore").decode() == str(folder) and not glob.has_magic(str(folder)):
        yield folder
        return
    with contextlib.chdir(folder):
        yield Path()


def _refuse_old(version: str) -> None:
    """Raises BackendError for an mlx-lm that computes something else than the model."""
    if tuple(int(number) for number in version.split(".")[:2]) < _LEAST_VERSION:
        raise BackendError(
            f'mlx-lm {version} routes tokens to experts wrongly: at least 0.32 is needed, pip install "lfm-convert[mlx]"'
        )
