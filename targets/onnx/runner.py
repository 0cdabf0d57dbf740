"""Runs an ONNX artifact in ONNX Runtime on the CPU, with its caches fed back."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...convert.errors import InputError
from ...convert.model.dtypes import Float32
from ..target import Runner

_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
_FIXED_INPUTS = ("input_ids", "attention_mask", "num_logits_to_keep")
_ROUTER = re.compile(r"^/layers\.(\d+)/feed_forward/router/TopK")
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRunner(Runner):
    """One session; caches start empty and follow the session's own inputs."""

    batches: ClassVar[Sequence[str]] = ("left", "right")

    def __init__(self, path: Path, *, threads: int) -> None:
        self._path, self._threads = path, threads
        self._session = self._open(str(path))
        self._routers: dict[str, int] | None = None
        self._outputs = [o.name for o in self._session.get_outputs()]
        self._past_names = [i.name for i in self._session.get_inputs() if i.name not in _FIXED_INPUTS]
        self.reset()

    def _open(self, model: str | bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if isinstance(model, bytes):
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(self._path.parent))
        try:
            return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime raises its own kinds
            raise InputError(f"{self._path}: ONNX Runtime refuses it: {error}") from None

    @property
    def backend(self) -> str:
        return f"onnxruntime {onnxruntime.__version__} CPU, {self._threads} threads"

    def reset(self) -> None:
        self._length = 0
        self._past = self._empty(1)

    def _empty(self, n_rows: int) -> dict[str, Any]:
        """Caches of `n_rows` conversations that have not begun."""
        return {
            cache.name: np.zeros(
                [n_rows if d == "batch_size" else 0 if isinstance(d, str) else d for d in cache.shape],
                _ELEMENT_TYPES[cache.type],
            )
            for cache in self._session.get_inputs()
            if cache.name in self._past_names
        }

    def another(self) -> OnnxRunner:
        """Caches are inputs and outputs, so that a session serves any number of conversations."""
        other = copy.copy(self)
        other.reset()
        return other

    def extend(self, token_ids: Sequence[int]) -> Float32:
        self._length += len(token_ids)
        ids = np.array([token_ids], np.int64)
        logits, self._past = self._step(ids, np.ones((1, self._length), np.int64), self._past)
        result: Float32 = logits[0]
        return result

    def _step(self, ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, Any]) -> tuple[Float32, Any]:
        logits, *present = self._session.run(self._outputs, _feeds(ids, mask, past))
        return logits.astype(np.float32, copy=False), dict(zip(self._past_names, present, strict=True))

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Rows of zeros padded on the `left` or `right`; those on the left are also continued by their last token."""
        rows = prompts if way == "right" else [prompt[:-1] for prompt in prompts]
        ids, mask = _padded(rows, way)
        logits, past = self._step(ids, mask, self._empty(len(rows)))
        found = [values[kept == 1] for values, kept in zip(logits, mask, strict=True)]
        if way == "right":
            return found
        last = np.array([prompt[-1:] for prompt in prompts], np.int64)
        logits, _ = self._step(last, np.concatenate([mask, np.ones_like(last)], axis=1), past)
        return [np.concatenate(both) for both in zip(found, logits, strict=True)]

    def experts(self, token_ids: Sequence[int]) -> dict[int, NDArray[np.int64]] | None:
        """What each router's TopK chooses. The session is opened anew, once, with these as further outputs."""
        if self._routers is None:
            self._routers = self._watch_routers()
        if not self._routers:
            return None
        ids = np.array([token_ids], np.int64)
        chosen = self._session.run(list(self._routers), _feeds(ids, np.ones_like(ids), self._empty(1)))
        return dict(zip(self._routers.values(), chosen, strict=True))

    def _watch_routers(self) -> dict[str, int]:
        """The layer of every value that is now an output besides those of the file."""
        import onnx

        proto = onnx.load(str(self._path), load_external_data=False)
        routers = {node.output[1]: int(m[1]) for node in proto.graph.node if (m := _ROUTER.match(node.name))}
        if routers:
            for name in routers:
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
            del self._session  # a large model fits once
            self._session = self._open(proto.SerializeToString())
        return routers


def _feeds(ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, Any]) -> dict[str, Any]:
    return {"input_ids": ids, "attention_mask": mask, "num_logits_to_keep": np.array(0, np.int64), **past}


def _padded(rows: Sequence[Sequence[int]], side: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one length, and 1 where they hold a token. Shapes: both [rows, longest]."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        here = slice(-len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, here] = tokens
        mask[row, here] = 1
    return ids, mask
