"""The delegates that can compute the regions of the model; without torch."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass

from ...graph.errors import BackendError, UsageError


@dataclass(frozen=True)
class Backend:
    """A delegate: its name to people, what lowering to it needs beside executorch, what an app links, where it runs."""

    title: str
    package: str | None
    library: str
    runs_on: str


XNNPACK = "xnnpack"
BACKENDS: Mapping[str, Backend] = {
    XNNPACK: Backend("XNNPACK", None, "xnnpack_backend", "any CPU"),
    "coreml": Backend("Core ML", "coremltools", "coremldelegate", "iOS 18, macOS 15 and newer"),
    "vulkan": Backend("Vulkan", None, "vulkan_backend", "Android and other systems with Vulkan"),
}


def find_backend(name: str) -> Backend:
    """Raises UsageError listing the delegates there are."""
    if name not in BACKENDS:
        raise UsageError(f"--et-backend is '{name}': expected one of {', '.join(BACKENDS)}")
    return BACKENDS[name]


def refuse_missing(name: str) -> None:
    """Raises BackendError if the package that lowers to a delegate is not installed."""
    package = BACKENDS[name].package
    if package and importlib.util.find_spec(package) is None:
        raise BackendError(
            f"--et-backend {name} needs the package '{package}', which is not installed: pip install {package}"
        )


def refuse_running(name: str) -> None:
    """Raises BackendError for a file whose delegate the Python runtime does not have."""
    if name != XNNPACK:
        found = BACKENDS[name]
        raise BackendError(
            f"not run here: {found.title} runs on {found.runs_on}, and ExecuTorch's wheel has no runtime of it"
        )
