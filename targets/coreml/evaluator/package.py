"""An .mlpackage on disk: its manifest, the model's protobuf, the files of weights it refers to.

| file                                        | content                                               |
|---------------------------------------------|-------------------------------------------------------|
| Manifest.json                               | the items, and which of them is the model             |
| Data/com.apple.CoreML/model.mlmodel         | the protobuf `Model`                                  |
| Data/com.apple.CoreML/weights/weight.bin    | constants, see `weight_file`                          |

Source: coremltools 9.0 `models/utils.py`, `libmodelpackage`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from ....graph.errors import InputError, needs_extra
from ....graph.json_text import read_object
from ..library import messages
from .weight_file import WeightFile

MANIFEST = "Manifest.json"
_DATA = "Data"
_MODEL_PATH = "@model_path/"
# A protobuf of more than this is none of a program whose weights lie beside it, and takes several times as much to read.
MAX_SPEC_BYTES = 64 << 20


@dataclass(frozen=True)
class Package:
    """A package whose protobuf has been read; files of weights are opened when they are first asked for."""

    path: Path
    model_file: Path
    spec: Any = field(repr=False)
    _weights: dict[str, WeightFile] = field(default_factory=dict, repr=False)

    def weights(self, name: str) -> WeightFile:
        """A file of weights by the name that the spec has for it: `@model_path/weights/weight.bin`.

        Raises: InputError for one outside the package, or that is damaged.
        """
        if name not in self._weights:
            inside = PurePosixPath(name.removeprefix(_MODEL_PATH))
            if not (name.startswith(_MODEL_PATH) and _is_inside(name, inside)):
                raise InputError(f"{self.path}: its weights lie in '{shown(name)}', which is no file of the package")
            self._weights[name] = WeightFile(self.model_file.parent / inside)
        return self._weights[name]

    def forget(self) -> None:
        """Gives the memory back that reading weights has taken so far."""
        for file in self._weights.values():
            file.forget()


def shown(text: str, most: int = 80) -> str:
    """A text of a file's own as a sentence may hold it: not too long, and on one line."""
    start = text[:most]
    return start if start.isprintable() else start.encode("unicode_escape").decode()


def open_package(path: Path) -> Package:
    """The package in a folder.

    Raises: InputError for what is none, or is damaged; BackendError without coremltools.
    """
    model_file = _model_file(path)
    with needs_extra("coreml", "Core ML"):
        from google.protobuf.message import DecodeError

        model = messages().Model
    try:
        size = model_file.stat().st_size
        if size > MAX_SPEC_BYTES:
            raise InputError(
                f"{model_file}: has {size} bytes: expected at most {MAX_SPEC_BYTES}, weights lie beside it"
            )
        spec = model.FromString(model_file.read_bytes())
    except (OSError, DecodeError) as error:
        raise InputError(f"{model_file}: is no model of Core ML that can be read ({shown(str(error))})") from None
    return Package(path, model_file, spec)


def _model_file(path: Path) -> Path:
    manifest = path / MANIFEST
    if not manifest.is_file():
        raise InputError(f"{path}: is no .mlpackage: it has no {MANIFEST}")
    content = read_object(manifest)
    items, root = content.get("itemInfoEntries"), content.get("rootModelIdentifier")
    item = items.get(root) if isinstance(items, dict) and isinstance(root, str) else None
    place = item.get("path") if isinstance(item, dict) else None
    if not isinstance(place, str):
        raise InputError(f"{manifest}: names no model: expected the path of the item 'rootModelIdentifier'")
    inside = PurePosixPath(place)
    if not _is_inside(place, inside):
        raise InputError(f"{manifest}: its model lies at '{shown(place)}', which is outside the package")
    model_file = path / _DATA / inside
    if not model_file.is_file():
        raise InputError(f"{path}: has no file '{_DATA}/{shown(place)}', which its manifest names as the model")
    return model_file


def _is_inside(name: str, path: PurePosixPath) -> bool:
    """Whether a file's name of another stays below where it begins, and can stand in a sentence."""
    return name.isprintable() and ".." not in path.parts and not path.is_absolute()
