"""coremltools' message classes, without the rest of coremltools.

Importing coremltools takes seconds and hundreds of megabytes (it imports torch, scikit-learn and pandas where they are
installed). Packages are read and written by its message classes alone, which lie in a folder of modules that need
nothing but protobuf: they are imported as a package of their own. Where coremltools itself is imported too, both have
the very same classes, since protobuf keeps one class for a message of a name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

_LIBRARY = "coremltools"
_ALONE = "_lfm_convert_coreml_messages"


@cache
def messages(name: str = "Model_pb2") -> Any:
    """A module of message classes: `Model_pb2`, `MIL_pb2`, `FeatureTypes_pb2`.

    Raises: ModuleNotFoundError if coremltools or protobuf is not installed.
    """
    if _LIBRARY in sys.modules:
        return importlib.import_module(f"{_LIBRARY}.proto.{name}")
    if _ALONE not in sys.modules:
        sys.modules[_ALONE] = _empty_package(_folder())
    return importlib.import_module(f"{_ALONE}.{name}")


def _folder() -> Path:
    spec = importlib.util.find_spec(_LIBRARY)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"No module named '{_LIBRARY}'", name=_LIBRARY)
    return Path(spec.submodule_search_locations[0]) / "proto"


def _empty_package(folder: Path) -> ModuleType:
    package = ModuleType(_ALONE)
    package.__path__ = [str(folder)]
    return package


def library_version() -> str:
    """`coremltools 9.0`."""
    return f"{_LIBRARY} {version(_LIBRARY)}"
