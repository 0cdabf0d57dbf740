"""Which llama.cpp runs a file: the wheel, or wllama where an architecture is younger than the wheel."""

from __future__ import annotations

import os

from ...graph.errors import UsageError
from ...quantize.gguf_file.tensor_names import family_of, gguf_names
from ..target import Artifact
from . import runner
from .conversation import LlamaConversation
from .runner import PINNED_VERSION, LlamaRunner
from .wllama import install
from .wllama.runner import WllamaRunner

WHEEL, WLLAMA = "xllamacpp", "wllama"
# Names the one that is to run every file.
CHOICE_VARIABLE = "LFM_CONVERT_LLAMA_CPP"
# 2026.10.11549 is b11549.
_WHEEL_BUILD = int(PINNED_VERSION.rpartition(".")[2])


def runtime_for(architecture: str) -> str:
    """`WHEEL` or `WLLAMA`, for a file's `general.architecture`.

    Raises: UsageError if the environment names a runtime that there is not.
    """
    chosen = os.environ.get(CHOICE_VARIABLE)
    if not chosen:
        family = family_of(architecture)
        return WLLAMA if family and gguf_names(family).first_build > _WHEEL_BUILD else WHEEL
    if chosen not in (WHEEL, WLLAMA):
        raise UsageError(f"{CHOICE_VARIABLE}={chosen}: expected {WHEEL} or {WLLAMA}")
    return chosen


def open_runner(artifact: Artifact, architecture: str, *, threads: int) -> LlamaConversation:
    """Loads a GGUF artifact into the llama.cpp that knows it.

    Raises: BackendError if that one is not installed; InputError for a bad file.
    """
    if runtime_for(architecture) == WLLAMA:
        return WllamaRunner(artifact.files, threads=threads)
    return LlamaRunner(artifact.path, threads=threads)


def missing() -> str | None:
    """What must be installed before a file runs; None if either runtime is there, or the chosen one."""
    if os.environ.get(CHOICE_VARIABLE) == WLLAMA:
        return install.missing()
    wheel = runner.missing()
    return wheel if wheel and install.missing() else None
