"""Runs a GGUF in llama.cpp itself, through the C interface that the xllamacpp wheel exports.

The structures below are those of `llama.h` in the pinned release; they move between releases, so any
other is refused. Keys and values are cached in float32 and flash attention is off: parity is a question
about the file, not about the cache.
Source: llama.cpp `include/llama.h`.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...graph.dtypes import Float32
from ...graph.errors import BackendError, InputError
from ..target import WatchedRunner
from .conversation import BATCH, LlamaConversation, Piece
from .probes import Batch, RouterWatch, render_by_server, sequence_batch

PINNED_VERSION = "2026.10.11549"
_PIP = 'pip install "lfm-convert[gguf]"'
# What the server gives a template of a vocabulary, and the name of the template it takes where tools are given.
_SPECIAL_TOKENS = frozenset({"bos_token", "eos_token"})
_TOOL_TEMPLATE = "tool_use"
_GGML_F32 = 0
_NO_POOLING = 0
_ERROR_LEVEL = 4

_log_lines: deque[str] = deque(maxlen=3)


def _keep_errors(level: int, text: bytes, _: object) -> None:
    """llama.cpp's log: silent, with the last errors kept for our own message."""
    if level == _ERROR_LEVEL:
        _log_lines.append(text.decode("utf-8", "replace").strip())


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(_keep_errors)


class _ModelParams(ctypes.Structure):
    _fields_ = (
        ("devices", ctypes.c_void_p),
        ("tensor_buft_overrides", ctypes.c_void_p),
        ("n_gpu_layers", ctypes.c_int32),
        ("split_mode", ctypes.c_int),
        ("load_mode", ctypes.c_int),
        ("lazy_mode", ctypes.c_int),
        ("main_gpu", ctypes.c_int32),
        ("tensor_split", ctypes.c_void_p),
        ("progress_callback", ctypes.c_void_p),
        ("progress_callback_user_data", ctypes.c_void_p),
        ("kv_overrides", ctypes.c_void_p),
        *((flag, ctypes.c_bool) for flag in ("vocab_only", "check_tensors", "use_extra_bufts")),
        *((flag, ctypes.c_bool) for flag in ("no_host", "no_alloc", "load_mtp")),
    )


class _ContextParams(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("n_ctx", "n_batch", "n_ubatch", "n_seq_max", "n_rs_seq")),
        ("n_outputs_max", ctypes.c_uint32),
        ("n_outputs_max_per_seq", ctypes.c_uint32),
        ("n_threads", ctypes.c_int32),
        ("n_threads_batch", ctypes.c_int32),
        *((name, ctypes.c_int) for name in ("ctx_type", "rope_scaling_type", "pooling_type", "attention_type")),
        ("flash_attn_type", ctypes.c_int),
        *((name, ctypes.c_float) for name in ("rope_freq_base", "rope_freq_scale", "yarn_ext_factor")),
        *((name, ctypes.c_float) for name in ("yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow")),
        ("yarn_orig_ctx", ctypes.c_uint32),
        ("defrag_thold", ctypes.c_float),
        ("cb_eval", ctypes.c_void_p),
        ("cb_eval_user_data", ctypes.c_void_p),
        ("type_k", ctypes.c_int),
        ("type_v", ctypes.c_int),
        ("abort_callback", ctypes.c_void_p),
        ("abort_callback_data", ctypes.c_void_p),
        ("unnamed", ctypes.c_void_p),  # b11549 has a pointer more here, null by default, than the header's usual fields
        *((flag, ctypes.c_bool) for flag in ("embeddings", "offload_kqv", "no_perf", "op_offload")),
        *((flag, ctypes.c_bool) for flag in ("swa_full", "kv_unified")),
        ("samplers", ctypes.c_void_p),
        ("n_samplers", ctypes.c_size_t),
        ("ctx_other", ctypes.c_void_p),
    )


# Function -> (result, arguments). Models, contexts and memories are opaque pointers.
_POINTER = ctypes.c_void_p
_FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_log_set": (None, (type(_LOG), _POINTER)),
    "llama_backend_init": (None, ()),
    "llama_model_default_params": (_ModelParams, ()),
    "llama_context_default_params": (_ContextParams, ()),
    "llama_model_load_from_file": (_POINTER, (ctypes.c_char_p, _ModelParams)),
    "llama_model_free": (None, (_POINTER,)),
    "llama_model_get_vocab": (_POINTER, (_POINTER,)),
    "llama_vocab_n_tokens": (ctypes.c_int32, (_POINTER,)),
    "llama_tokenize": (
        ctypes.c_int32,
        (_POINTER, ctypes.c_char_p, ctypes.c_int32, _POINTER, ctypes.c_int32, ctypes.c_bool, ctypes.c_bool),
    ),
    "llama_vocab_type": (ctypes.c_int, (_POINTER,)),
    "llama_vocab_is_eog": (ctypes.c_bool, (_POINTER, ctypes.c_int32)),
    "llama_init_from_model": (_POINTER, (_POINTER, _ContextParams)),
    "llama_free": (None, (_POINTER,)),
    "llama_get_memory": (_POINTER, (_POINTER,)),
    "llama_memory_clear": (None, (_POINTER, ctypes.c_bool)),
    "llama_decode": (ctypes.c_int32, (_POINTER, Batch)),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "llama_get_embeddings": (ctypes.POINTER(ctypes.c_float), (_POINTER,)),
    "llama_get_embeddings_seq": (ctypes.POINTER(ctypes.c_float), (_POINTER, ctypes.c_int32)),
    "llama_pooling_type": (ctypes.c_int, (_POINTER,)),
    "llama_model_n_embd_out": (ctypes.c_int32, (_POINTER,)),
    "llama_model_chat_template": (ctypes.c_char_p, (_POINTER, ctypes.c_char_p)),
    "ggml_get_name": (ctypes.c_char_p, (_POINTER,)),
    "ggml_get_data": (_POINTER, (_POINTER,)),
    "ggml_nbytes": (ctypes.c_size_t, (_POINTER,)),
    "ggml_nelements": (ctypes.c_int64, (_POINTER,)),
}


def installed_version() -> str | None:
    """The release of xllamacpp that is installed, if any."""
    try:
        return version("xllamacpp")
    except PackageNotFoundError:
        return None


def missing() -> str | None:
    """The pip line that brings the pinned release, or None if it is installed."""
    return None if installed_version() == PINNED_VERSION else _PIP


@cache
def load_library() -> ctypes.CDLL:
    """llama.cpp, loaded from the xllamacpp package without importing it.

    Raises: BackendError if the package, its pinned release or a system library is missing.
    """
    spec = find_spec("xllamacpp")
    if missing() or spec is None:
        found = installed_version() or "none"
        raise BackendError(f"running GGUF files needs xllamacpp {PINNED_VERSION}, found {found}: {_PIP}")
    folders = [Path(place) for place in spec.submodule_search_locations or ()]
    paths = [path for folder in folders for path in folder.glob("xllamacpp*") if path.suffix in (".so", ".pyd")]
    if not paths:
        raise BackendError(f"xllamacpp is installed without its library: {_PIP} --force-reinstall")
    # Threads that wait for each other by spinning take several times the work's own seconds on a busy machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        library = ctypes.CDLL(str(paths[0]))
    except OSError as error:
        hint = ": install it with the system's package manager (Debian: libgomp1)" if "libgomp" in str(error) else ""
        raise BackendError(f"llama.cpp cannot be loaded: {error}{hint}") from None
    for name, (result, arguments) in _FUNCTIONS.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    library.llama_log_set(_LOG, None)
    library.llama_backend_init()
    return library


class LlamaRunner(LlamaConversation, WatchedRunner):
    """A GGUF loaded on the CPU, one conversation at a time."""

    _watch: RouterWatch | None = None

    def __init__(self, path: Path, *, threads: int) -> None:
        super().__init__()
        self._llama = load_library()
        self._path, self._threads = path, threads
        _log_lines.clear()
        params = self._llama.llama_model_default_params()
        params.n_gpu_layers = 0
        self._model = self._llama.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise InputError(f"{path}: llama.cpp does not load it: {' '.join(_log_lines) or 'no reason given'}")
        self._vocab = self._llama.llama_model_get_vocab(self._model)
        self.n_vocab = int(self._llama.llama_vocab_n_tokens(self._vocab))

    def vectors(self, token_ids: Sequence[int]) -> Float32:
        """What llama.cpp makes of a text by the file's own pooling: all of its tokens go into one call."""
        ids = list(token_ids)
        context = self._open(len(ids), n_together=len(ids), embeddings=True)
        try:
            self._run(context, sequence_batch([(0, ids)]))
            is_pooled = self._llama.llama_pooling_type(context) != _NO_POOLING
            found = (
                self._llama.llama_get_embeddings_seq(context, 0)
                if is_pooled
                else self._llama.llama_get_embeddings(context)
            )
            if not found:
                raise InputError(f"{self._path}: llama.cpp gives no vectors of it: {' '.join(_log_lines)}")
            shape = 1 if is_pooled else len(ids), int(self._llama.llama_model_n_embd_out(self._model))
            return np.ctypeslib.as_array(found, shape).copy()
        finally:
            self._free(context)

    @property
    def backend(self) -> str:
        return f"llama.cpp (xllamacpp {PINNED_VERSION}) CPU, {self._threads} threads"

    @contextmanager
    def watching(self) -> Iterator[Callable[[int], dict[int, NDArray[np.int64]] | None]]:
        """What llama.cpp's router chooses, seen by its callback for evaluated tensors, which a context has for its life."""
        self._leave()
        self._watch = RouterWatch(self._llama)
        try:
            yield self._watch.take
        finally:
            self._leave()
            self._watch = None

    def templates(self) -> dict[str, str]:
        """The default template, and the one that the server takes where tools are given."""
        asked = {"default": None, _TOOL_TEMPLATE: _TOOL_TEMPLATE.encode()}
        found = {name: self._llama.llama_model_chat_template(self._model, key) for name, key in asked.items()}
        return {name: text.decode("utf-8", "replace") for name, text in found.items() if text}

    def render(
        self, conversations: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[Mapping[str, Any]]
    ) -> list[str] | None:
        """Chats by the Jinja engine of llama.cpp's server.

        None for a template that prints today's date or a special token that the server does not pass to it, and for
        tools that are not of the form the server's API takes.
        """
        templates = self.templates()
        template = templates.get(_TOOL_TEMPLATE if tools else "", templates.get("default"))
        if template is None or "strftime_now" in template or any("type" not in tool for tool in tools):
            return None
        if not _SPECIAL_TOKENS.issuperset(re.findall(r"\w+_token\b", template)):
            return None
        return render_by_server(self._path, conversations, tools)

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text as llama.cpp cuts it, special tokens recognised and BOS added if the file says so."""
        data = text.encode()
        ids = (ctypes.c_int32 * (len(data) + 2))()
        n = self._llama.llama_tokenize(self._vocab, data, len(data), ids, len(ids), True, True)
        return list(ids[:n])

    def stops(self) -> dict[str, list[int]]:
        """What llama.cpp ends a generation at; a file without a tokenizer tells it nothing."""
        if not self._llama.llama_vocab_type(self._vocab):
            return {}
        return {"llama.cpp": [i for i in range(self.n_vocab) if self._llama.llama_vocab_is_eog(self._vocab, i)]}

    def close(self) -> None:
        for other in self._others:
            self._llama.llama_free(other._context)
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._context = self._model = None

    def _open(
        self,
        n_tokens: int,
        *,
        n_sequences: int = 1,
        n_together: int = BATCH,
        embeddings: bool = False,
    ) -> int:
        params = self._llama.llama_context_default_params()
        params.n_ctx, params.n_seq_max, params.embeddings = n_tokens, n_sequences, embeddings
        params.n_batch = params.n_ubatch = n_together
        params.n_threads = params.n_threads_batch = self._threads
        params.flash_attn_type = 0
        params.type_k = params.type_v = _GGML_F32
        params.kv_unified = n_sequences > 1  # else the room is cut into equal parts
        if self._watch is not None:
            params.cb_eval = ctypes.cast(self._watch.callback, ctypes.c_void_p)
        context: int | None = self._llama.llama_init_from_model(self._model, params)
        if not context:
            raise InputError(f"{self._path}: llama.cpp makes no context of {n_tokens} tokens: {' '.join(_log_lines)}")
        return context

    def _free(self, context: int) -> None:
        self._llama.llama_free(context)

    def _clear(self, context: int) -> None:
        self._llama.llama_memory_clear(self._llama.llama_get_memory(context), True)

    def _run(self, context: int, batch: Batch) -> None:
        status = self._llama.llama_decode(context, batch)
        if status != 0:
            raise InputError(f"{self._path}: llama.cpp fails to run it (status {status}): {' '.join(_log_lines)}")

    def _decode(self, context: int, pieces: Sequence[Piece]) -> Float32:
        batch = sequence_batch(pieces)
        if self._watch is not None:
            self._watch.n_tokens = batch.n_tokens
        self._run(context, batch)
        logits = self._llama.llama_get_logits(context)
        return np.ctypeslib.as_array(logits, (batch.n_tokens, self.n_vocab)).copy()
