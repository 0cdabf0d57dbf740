"""Runs an ONNX artifact in ONNX Runtime on the CPU, with its caches fed back."""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.errors import InputError
from ..target import Runner
from .encoder import EACH, POOLED
from .inputs import IDS, LOGITS, MASK, N_LOGITS, POSITIONS, head_size, is_cache, presents, unknown_inputs
from .stops import folder_stops

_ELEMENT_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
# Ours and those of onnxruntime-genai's builder.
_ROUTER = re.compile(r"^(?:/model)?/layers\.(\d+)/(?:feed_forward|moe)/router/TopK")
_EXTERNAL_FOLDER = "session.model_external_initializers_file_folder_path"


class OnnxRunner(Runner):
    """One session; caches start empty and follow the session's own inputs. `folder` holds the configs beside them."""

    batches: Sequence[str] = ("left", "right")

    def __init__(self, path: Path, *, threads: int, folder: Path | None = None) -> None:
        self._path, self._threads, self._folder = path, threads, folder or path.parent
        self._session = self._open(str(path))
        self._routers: dict[str, int] | None = None
        self._inputs = {each.name: each for each in self._session.get_inputs()}
        self._past_names = [name for name in self._inputs if is_cache(name)]
        self._present = presents(self._past_names, [output.name for output in self._session.get_outputs()])
        if unknown := unknown_inputs(self._inputs):
            raise InputError(f"{path}: takes {', '.join(unknown[:4])}, of which it is not known what to give")
        if len(self._present) != len(self._past_names):
            raise InputError(f"{path}: its outputs do not tell which of them its caches go on as")
        self.reset()

    def _open(self, model: str | bytes) -> onnxruntime.InferenceSession:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads
        # Threads that spin for their next piece take a multiple of the work's own seconds on a busy machine.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        if isinstance(model, bytes):
            options.add_session_config_entry(_EXTERNAL_FOLDER, str(_data_folder(self._path)))
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
        found = {}
        for name in self._past_names:
            cache = self._inputs[name]
            if cache.type not in _ELEMENT_TYPES:
                raise InputError(f"{self._path}: its cache '{name}' is of {cache.type}: expected float or float16")
            found[name] = np.zeros([n_rows, *self._sizes(name, cache.shape[1:])], _ELEMENT_TYPES[cache.type])
        return found

    def _sizes(self, name: str, shape: Sequence[int | str]) -> list[int]:
        """All axes of an empty cache but the first: of those that have a name, all but that of a head are its length."""
        sizes = [size if isinstance(size, int) else 0 for size in shape]
        if len(shape) == 3 and isinstance(shape[-1], str):
            head = head_size(self._folder)
            if head is None:
                raise InputError(
                    f"{self._path}: the size '{shape[-1]}' of its cache '{name}' is told by no config beside it"
                )
            sizes[-1] = head
        return sizes

    def stops(self) -> dict[str, tuple[int, ...]]:
        """Those of onnxruntime-genai, and those of Transformers.js and of transformers' own libraries."""
        return folder_stops(self._folder)

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

    def vectors(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.vectors`."""
        names = {output.name for output in self._session.get_outputs()}
        name = next((name for name in (POOLED, EACH) if name in names), None)
        if name is None:
            raise InputError(f"{self._path}: gives {', '.join(sorted(names)[:4])}: expected {POOLED} or {EACH}")
        ids = np.array([token_ids], np.int64)
        (found,) = self._session.run([name], self._feeds(ids, np.ones_like(ids), {}))
        vectors: Float32 = found.astype(np.float32, copy=False)
        return vectors if name == POOLED else vectors[0]

    def last_logits(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.last_logits`. A graph that can is asked for no others."""
        ids = np.array([token_ids], np.int64)
        logits, _ = self._step(ids, np.ones_like(ids), self._empty(1), n_logits=1)
        found: Float32 = logits[0, -1]
        return found

    def _step(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, Any], *, n_logits: int = 0
    ) -> tuple[Float32, Any]:
        feeds = self._feeds(ids, mask, past, n_logits=n_logits)
        logits, *present = self._session.run([LOGITS, *self._present.values()], feeds)
        return logits.astype(np.float32, copy=False), dict(zip(self._present, present, strict=True))

    def _feeds(
        self, ids: NDArray[np.int64], mask: NDArray[np.int64], past: dict[str, Any], *, n_logits: int = 0
    ) -> dict[str, Any]:
        """Every input of the graph. Positions count the tokens before that are none of padding. Logits are those of the
        last `n_logits` tokens, of all for 0."""
        n_tokens = ids.shape[1]
        positions = np.maximum(mask.cumsum(axis=1) - 1, 0)[:, -n_tokens:]
        given = {IDS: ids, MASK: mask, POSITIONS: positions}
        if N_LOGITS in self._inputs:  # a number, or as onnxruntime-genai feeds it, a list of one
            given[N_LOGITS] = np.full([1] * len(self._inputs[N_LOGITS].shape), n_logits, np.int64)
        return {name: value for name, value in given.items() if name in self._inputs} | past

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
        chosen = self._session.run(list(self._routers), self._feeds(ids, np.ones_like(ids), self._empty(1)))
        return dict(zip(self._routers.values(), chosen, strict=True))

    def _watch_routers(self) -> dict[str, int]:
        """The layer of every value that is now an output besides those of the file."""
        import onnx

        proto = onnx.load(str(self._path), load_external_data=False)
        routers = {node.output[1]: int(m[1]) for node in proto.graph.node if (m := _ROUTER.match(node.name))}
        if routers:
            for name in routers:
                proto.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None))
            _follow_links(proto, self._path)
            del self._session  # a large model fits once
            self._session = self._open(proto.SerializeToString())
        return routers


class AnybodysRunner(OnnxRunner):
    """A graph of unknown origin. One that gives the logits of its last token only is run token by token.

    Graphs of onnxruntime-genai's builder, and what is made of them, read padding on the left as tokens, and their
    writers tell users to pad on the right: only that is tried.
    """

    batches: Sequence[str] = ("right",)

    def __init__(self, path: Path, *, threads: int, folder: Path | None = None) -> None:
        super().__init__(path, threads=threads, folder=folder)
        two = np.zeros((1, 2), np.int64)
        self._gives_last_only = self._step(two, np.ones_like(two), self._empty(1))[0].shape[1] == 1
        if self._gives_last_only:
            self.batches = ()

    def extend(self, token_ids: Sequence[int]) -> Float32:
        if not self._gives_last_only:
            return super().extend(token_ids)
        return np.concatenate([super(AnybodysRunner, self).extend([token]) for token in token_ids])


def _data_folder(path: Path) -> Path:
    """Where a graph's data really lies: beside it, or where a hub cache keeps what it links to."""
    return path.resolve().parent


def _follow_links(proto: Any, path: Path) -> None:
    """Gives data files the names they have in `_data_folder`: the runtime reads no link that leads out of it."""
    for initializer in proto.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = (path.parent / entry.value).resolve().name


def _padded(rows: Sequence[Sequence[int]], side: str) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows of one length, and 1 where they hold a token. Shapes: both [rows, longest]."""
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for row, tokens in enumerate(rows):
        here = slice(-len(tokens), None) if side == "left" else slice(len(tokens))
        ids[row, here] = tokens
        mask[row, here] = 1
    return ids, mask
