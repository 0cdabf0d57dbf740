"""Runs a GGUF in llama.cpp as WebAssembly, in the build that the npm package wllama carries.

That build knows architectures which no llama.cpp in a Python wheel knows yet. Its logits are the raw ones of every
position, as the wheel's are. Weights, caches and logits share the 4 GiB that its memory may have.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ....graph.dtypes import Float32
from ....graph.errors import BackendError, InputError
from ....quantize.gguf_file.reader import read_gguf
from ..conversation import BATCH, LlamaConversation, Piece
from .engine import Engine, EngineError
from .install import PINNED_VERSION, installation

LLAMA_CPP = "b12211"
_MEMORY_BYTES = 4 << 30
_TEMPLATES = {"default": None, "tool_use": "tool_use"}


class WllamaRunner(LlamaConversation):
    """A GGUF loaded in a process of its own, one conversation at a time.

    `files` are those of the artifact, the first of a split one first.
    Raises: BackendError if wllama is not installed or the file is beyond its memory; InputError for a bad file.
    """

    def __init__(self, files: Sequence[Path], *, threads: int) -> None:
        super().__init__()
        self._path, self._threads = files[0], threads
        n_bytes = sum(path.stat().st_size for path in files)
        if n_bytes >= _MEMORY_BYTES:
            raise BackendError(f"{self._path}: holds {n_bytes} bytes, and wllama's memory ends at {_MEMORY_BYTES}")
        metadata = read_gguf(self._path).metadata
        self.n_vocab = _vocabulary_size(metadata)
        self._has_tokenizer = metadata.get("tokenizer.ggml.model", "none") != "none"
        self._engine = Engine(installation(), threads=threads)
        try:
            self._ask("load", files=[str(path.absolute()) for path in files], n_vocab=self.n_vocab)
        except InputError:
            self.close()
            raise

    @property
    def backend(self) -> str:
        return f"llama.cpp {LLAMA_CPP} (wllama {PINNED_VERSION}, WebAssembly) CPU, {self._threads} threads"

    def tokenize(self, text: str) -> list[int]:
        """Ids of a text as llama.cpp cuts it, special tokens recognised and BOS added if the file says so."""
        ids: list[int] = self._ask("tokenize", text=text)[0]["ids"]
        return ids

    def stops(self) -> dict[str, list[int]]:
        """What llama.cpp ends a generation at; a file without a tokenizer tells it nothing."""
        return {"llama.cpp": self._ask("stops")[0]["ids"]} if self._has_tokenizer else {}

    def templates(self) -> dict[str, str]:
        """The default template, and the one that the server takes where tools are given."""
        found = {name: self._ask("template", name=key)[0] for name, key in _TEMPLATES.items()}
        return {name: answer["text"] for name, answer in found.items() if answer["text"]}

    def close(self) -> None:
        self._engine.close()

    def _open(self, n_tokens: int, *, n_sequences: int = 1) -> int:
        answer, _ = self._ask("open", size=n_tokens, batch=BATCH, sequences=n_sequences)
        return int(answer["context"])

    def _free(self, context: int) -> None:
        self._ask("free", context=context)

    def _decode(self, context: int, pieces: Sequence[Piece]) -> Float32:
        tokens = [int(token) for _, ids in pieces for token in ids]
        positions = [start + i for start, ids in pieces for i in range(len(ids))]
        sequences = [number for number, (_, ids) in enumerate(pieces) for _ in ids]
        _, data = self._ask("decode", context=context, tokens=tokens, positions=positions, sequences=sequences)
        return np.frombuffer(data, "<f4").reshape(len(tokens), self.n_vocab).astype(np.float32)

    def _ask(self, call: str, **options: Any) -> tuple[dict[str, Any], bytes]:
        try:
            return self._engine.ask(call, **options)
        except EngineError as error:
            raise InputError(f"{self._path}: wllama's llama.cpp fails to {call} it: {error}") from None


def _vocabulary_size(metadata: dict[str, Any]) -> int:
    """As many tokens as are listed; of a file without a tokenizer what it says itself."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    said = metadata.get(f"{metadata.get('general.architecture')}.vocab_size")
    if isinstance(tokens, list):
        return len(tokens)
    return said if isinstance(said, int) else 0
