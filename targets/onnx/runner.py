"""Runs an ONNX artifact in ONNX Runtime on the CPU, with its caches fed back."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from ...convert.errors import InputError
from ...convert.model.dtypes import Float32
from ..target import Runner

_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_FIXED_INPUTS = ("input_ids", "attention_mask", "num_logits_to_keep")


class OnnxRunner(Runner):
    """One session; caches start empty and follow the session's own inputs."""

    def __init__(self, path: Path, *, threads: int) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own kinds
            raise InputError(f"{path}: ONNX Runtime refuses it: {error}") from None
        self._threads = threads
        self._past_names = [i.name for i in self._session.get_inputs() if i.name not in _FIXED_INPUTS]
        self.reset()

    @property
    def backend(self) -> str:
        return f"onnxruntime {onnxruntime.__version__} CPU, {self._threads} threads"

    def reset(self) -> None:
        self._length = 0
        self._past = {}
        for cache in self._session.get_inputs():
            if cache.name in self._past_names:
                shape = [1 if d == "batch_size" else 0 if isinstance(d, str) else d for d in cache.shape]
                self._past[cache.name] = np.zeros(shape, _ELEMENT_TYPES[cache.type])

    def extend(self, token_ids: Sequence[int]) -> Float32:
        self._length += len(token_ids)
        feeds = {
            "input_ids": np.array([token_ids], np.int64),
            "attention_mask": np.ones((1, self._length), np.int64),
            "num_logits_to_keep": np.array(0, np.int64),
            **self._past,
        }
        logits, *present = self._session.run(None, feeds)
        self._past = dict(zip(self._past_names, present, strict=True))
        result: Float32 = logits[0].astype(np.float32, copy=False)
        return result
