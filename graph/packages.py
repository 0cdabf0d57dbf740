"""The packages whose versions are recorded: one list for manifests, reports and `lfm-convert doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version

# What the bytes of an artifact can depend on.
WRITING = ("numpy", "onnx", "tokenizers")
# What is asked for beside that to fetch, run and compare.
RUNNING = (
    "huggingface_hub", "onnxruntime", "xllamacpp", "mlx", "mlx-lm", "executorch", "coremltools", "torch", "torchao",
    "transformers", "compressed-tensors",
)  # fmt: skip


def versions(names: Sequence[str] = (*WRITING, *RUNNING)) -> dict[str, str]:
    """Versions of those that are installed."""
    return {name: found for name in names if (found := installed(name)) is not None}


def installed(name: str) -> str | None:
    """The version of a package; None if it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None
