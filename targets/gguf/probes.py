"""What the validator asks of llama.cpp beyond one conversation: several sequences in a call, its routers' choices,
and chats as its server writes them.

Source: llama.cpp `include/llama.h` (llama_batch), `src/llama-graph.cpp` (names of the router's tensors).
"""

from __future__ import annotations

import ctypes
import json
import secrets
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import numpy as np
from numpy.typing import NDArray

from ...graph.errors import InputError

_INT32 = ctypes.c_int32
_EVALUATED = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
_CHOSEN = "ffn_moe_topk-"  # and the layer
_RENDER_S = 60.0
_REPLY_BYTES = 300


class Batch(ctypes.Structure):
    """llama_batch: tokens with their positions and sequences; without these, the only conversation goes on."""

    _fields_ = (
        ("n_tokens", _INT32),
        ("token", ctypes.POINTER(_INT32)),
        ("embd", ctypes.c_void_p),
        ("pos", ctypes.POINTER(_INT32)),
        ("n_seq_id", ctypes.POINTER(_INT32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(_INT32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


def sequence_batch(pieces: Sequence[tuple[int, Sequence[int]]]) -> Batch:
    """One call for several sequences: of each, its start position and its next tokens. Logits of all are wanted."""
    tokens = [token for _, ids in pieces for token in ids]
    places = [start + i for start, ids in pieces for i in range(len(ids))]
    owners = [(_INT32 * 1)(number) for number, (_, ids) in enumerate(pieces) for _ in ids]
    n = len(tokens)
    return Batch(
        n,
        (_INT32 * n)(*tokens),
        None,
        (_INT32 * n)(*places),
        (_INT32 * n)(*[1] * n),
        (ctypes.POINTER(_INT32) * n)(*(ctypes.cast(owner, ctypes.POINTER(_INT32)) for owner in owners)),
        (ctypes.c_int8 * n)(*[1] * n),
    )


class RouterWatch:
    """Keeps what every router chose. `n_tokens` is that of the call under way; the callback must outlive its context."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library = library
        self._found: dict[int, list[NDArray[np.int64]]] = {}
        self.n_tokens = 0
        self.callback = _EVALUATED(self._see)

    def take(self, n: int) -> dict[int, NDArray[np.int64]] | None:
        """The experts [n, top_k] of each layer for the last n tokens, after which it begins anew; None of no mixture.

        Tokens before them are those of a conversation that was replayed in a larger context.
        """
        found = {layer: np.concatenate(rows)[-n:] for layer, rows in sorted(self._found.items())}
        self._found.clear()
        return found or None

    def _see(self, tensor: int, is_question: bool, _: object) -> bool:
        """llama.cpp asks first whether a tensor is wanted, then shows it."""
        name = self._library.ggml_get_name(tensor).decode("utf-8", "replace")
        if name.startswith(_CHOSEN) and not is_question:
            self._found.setdefault(int(name.removeprefix(_CHOSEN)), []).append(self._read(tensor))
        return name.startswith(_CHOSEN) or not is_question  # an answer of false to what is shown would end the call

    def _read(self, tensor: int) -> NDArray[np.int64]:
        """A tensor of int32 [top_k, n_tokens], which may be a view whose rows lie apart."""
        n, size = self.n_tokens, int(self._library.ggml_nbytes(tensor)) // 4
        top_k = int(self._library.ggml_nelements(tensor)) // n
        stride = (size - top_k) // (n - 1) if n > 1 else top_k
        data = ctypes.cast(self._library.ggml_get_data(tensor), ctypes.POINTER(_INT32))
        flat = np.ctypeslib.as_array(data, (size,)).astype(np.int64)
        return np.stack([flat[row * stride : row * stride + top_k] for row in range(n)])


def render_by_server(
    path: Path, conversations: Sequence[Sequence[Mapping[str, Any]]], tools: Sequence[Mapping[str, Any]]
) -> list[str]:
    """Chats as llama.cpp's server writes them, without the BOS token, which its tokenizer adds.

    The server listens on the loopback address alone, on a free port and behind a key, while this function runs.
    Raises: InputError if it does not load the file or refuses a chat.
    """
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel, params.n_gpu_layers, params.port = 256, 1, 0, 0
    params.warmup = params.fit_params = False
    params.no_extra_bufts = True  # nothing is multiplied, so that weights stay mapped instead of being copied in order
    params.verbosity = -1
    key = secrets.token_hex()
    params.api_keys = [key]
    try:
        server = xllamacpp.Server(params)
        ask = _Asker(server.listening_address, key)
        ask.slots()
        return [ask.template(messages, tools) for messages in conversations]
    except (RuntimeError, OSError, ValueError, KeyError) as error:
        said = error.read(_REPLY_BYTES).decode("utf-8", "replace") if isinstance(error, HTTPError) else error
        raise InputError(f"{path}: llama.cpp's server does not render its chats: {said}") from None


class _Asker:
    """Requests to a server, which no proxy sees."""

    def __init__(self, address: str, key: str) -> None:
        self._address, self._key = address, key
        self._direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def template(self, messages: Sequence[Mapping[str, Any]], tools: Sequence[Mapping[str, Any]]) -> str:
        """A chat as text."""
        asked = {"messages": list(messages)} | ({"tools": list(tools)} if tools else {})
        return str(self._reply("apply-template", json.dumps(asked).encode())["prompt"])

    def slots(self) -> None:
        """Waits for the server's main loop, which answers this. One that is stopped before its loop has begun to turn,
        as happens on a busy machine, turns for ever after."""
        self._reply("slots", None)

    def _reply(self, path: str, data: bytes | None) -> Any:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self._key}"}
        request = urllib.request.Request(f"{self._address}/{path}", data, headers)
        with self._direct.open(request, timeout=_RENDER_S) as reply:
            return json.loads(reply.read())
