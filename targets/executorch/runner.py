"""Runs a .pte in ExecuTorch's Python runtime: the method that ships, as the LLM runner calls it."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401  # registers embedding_4bit and embedding_byte
import numpy as np
import torch
from executorch.extension.llm.custom_ops import custom_ops  # noqa: F401  # registers caches and attention
from executorch.extension.pybindings.portable_lib import _unsafe_reset_threadpool
from executorch.runtime import Runtime, Verification

from ...graph.dtypes import Float32
from ...graph.errors import BackendError, InputError, UsageError
from ..target import Runner
from .layout import CONTEXT_METHOD
from .operators import refuse_missing_operators
from .reader import Program, read_data, read_program

# Without these nothing can be asked of a program. Source: executorch `extension/llm/runner/llm_runner_helper.cpp`.
_METHODS = frozenset({"forward", CONTEXT_METHOD, "get_vocab_size"})


class ExecutorchRunner(Runner):
    """A .pte loaded from scratch, one conversation at a time.

    The method gives the logits of its last token only. A conversation is therefore read twice: token by
    token for every row, then once more from position 0 in the pieces it came in, for the last row. Decoding,
    prefill, chunks and the reset at position 0 are all exercised by it.
    """

    def __init__(self, path: Path, *, threads: int, data: Path | None = None) -> None:
        program = read_program(path)  # a damaged file is refused here, in a sentence
        if data is not None:
            read_data(data)
        runtime = Runtime.get()
        _refuse_delegates(program, runtime.backend_registry)
        refuse_missing_operators(program, runtime.operator_registry.operator_names)
        _unsafe_reset_threadpool(threads)
        self._path, self._threads, self._data = path, threads, data
        self._pieces: list[list[int]] = []
        names = {plan.name for plan in program.content.execution_plan}
        if lacking := sorted(_METHODS - names):
            raise InputError(f"{path}: has no method {', '.join(lacking)}, by which LLM runners know a model")
        try:
            self._program = runtime.load_program(path, verification=Verification.Minimal, data_path=data)
            self.context = int(self._constant(CONTEXT_METHOD))
            self.n_vocab = int(self._constant("get_vocab_size"))
            self._method = self._program.load_method("forward")
        except RuntimeError as error:
            raise InputError(f"{path}: ExecuTorch {version('executorch')} does not load it: {error}") from None

    @property
    def backend(self) -> str:
        return f"ExecuTorch {version('executorch')} CPU, {self._threads} threads"

    def extend(self, token_ids: Sequence[int]) -> Float32:
        """See `Runner.extend`. Raises UsageError for ids outside the vocabulary, none, or more than the context."""
        ids = [int(i) for i in token_ids]
        if not ids or min(ids) < 0 or max(ids) >= self.n_vocab:
            raise UsageError(f"token ids must be one or more of 0 … {self.n_vocab - 1}")
        start = sum(map(len, self._pieces))
        if start + len(ids) > self.context:
            raise UsageError(f"{start + len(ids)} tokens do not fit the file's context of {self.context}")
        rows = [self.call([token], start + i) for i, token in enumerate(ids)]
        self._pieces.append(ids)
        if len(ids) > 1:
            rows[-1] = self._replay()
        return np.concatenate(rows)

    def reset(self) -> None:
        self._pieces = []

    def another(self) -> ExecutorchRunner:
        """The file loaded a second time, since all methods of one program share their state (ExecuTorch 1.5.1)."""
        return ExecutorchRunner(self._path, threads=self._threads, data=self._data)

    def call(self, token_ids: Sequence[int], start: int) -> Float32:
        """Logits [1, V] of the last of these tokens, the first of them at position `start`."""
        inputs = torch.tensor([list(token_ids)]), torch.tensor([start])
        try:
            (logits,) = self._method.execute(inputs)
        except RuntimeError as error:
            raise InputError(f"{self._path}: ExecuTorch fails to run it: {error}") from None
        found: Float32 = logits.numpy().copy()  # the next call overwrites them
        return found

    def _replay(self) -> Float32:
        start = 0
        for piece in self._pieces:
            logits = self.call(piece, start)
            start += len(piece)
        return logits

    def stops(self) -> dict[str, list[int]]:
        """What the LLM runner stops at. Without this method it asks its tokenizer, which may not find the model's token."""
        name = "get_eos_ids"
        has_any = name in self._program.method_names
        return {name: [int(i) for i in self._program.load_method(name).execute(())] if has_any else []}

    def _constant(self, name: str) -> int:
        (value,) = self._program.load_method(name).execute(())
        return int(value)


def _refuse_delegates(program: Program, registry: Any) -> None:
    """Raises BackendError for a program whose delegates the Python runtime does not have."""
    called = {delegate.id for plan in program.content.execution_plan for delegate in plan.delegates}
    missing = sorted(name for name in called if not registry.is_available(name))
    if missing:
        raise BackendError(
            f"not run here: {program.path.name} is for {', '.join(missing)}, of which there is no runtime here"
        )
