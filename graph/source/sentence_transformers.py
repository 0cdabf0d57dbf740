"""Folders of sentence-transformers and PyLate: what comes after the last layer, as their modules say it.

| module      | becomes                                                                             |
|-------------|-------------------------------------------------------------------------------------|
| Transformer | the model itself                                                                    |
| Pooling     | which of its vectors there are; without it, one for every token                     |
| Dense       | the projection, whose weights lie in the module's own folder; without bias, linear  |
| Normalize   | vectors of length one                                                               |

Source: sentence-transformers `modules.json`, `models/Pooling.py`, `models/Dense.py`; PyLate `models/Dense.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ..blocks import Pooling, VectorHead
from ..errors import Faults, InputError
from ..families.other_kinds import MODULES_FILE, SENTENCE_CONFIG
from ..json_text import parse_json, read_object

_TRANSFORMER, _POOLING, _DENSE, _NORMALIZE = "Transformer", "Pooling", "Dense", "Normalize"
_ORDER = (_TRANSFORMER, _POOLING, _DENSE, _NORMALIZE)
_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
# How the modes are spelled as flags, which sentence-transformers wrote before it wrote `pooling_mode`.
_FLAGS = {
    "pooling_mode_cls_token": Pooling.CLS,
    "pooling_mode_mean_tokens": Pooling.MEAN,
    "pooling_mode_lasttoken": Pooling.LAST,
}
_TRANSFORMER_CONFIG = "sentence_bert_config.json"
_MAX_BYTES = 1 << 24


@dataclass(frozen=True)
class Modules:
    """What a folder's modules say: the head, the file of the projection's weights, and the files that say so."""

    head: VectorHead
    dense: Path | None
    files: Mapping[str, bytes]


def read_modules(folder: Path) -> Modules:
    """The modules of a folder. Raises: InputError for a module that is not known, or does what no block says."""
    faults = Faults()
    places = _places(folder, faults)
    faults.raise_if_any(str(folder / MODULES_FILE))
    pooling = _pooling(folder, places[_POOLING], faults) if _POOLING in places else Pooling.NONE
    projected = _projected(folder, places[_DENSE], faults) if _DENSE in places else None
    faults.raise_if_any(str(folder))
    head = VectorHead(pooling=pooling, projected=projected, is_normalised=_NORMALIZE in places)
    dense = folder / places[_DENSE] / _WEIGHTS if _DENSE in places else None
    return Modules(head, dense, _files(folder, places))


def _places(folder: Path, faults: Faults) -> dict[str, str]:
    """The folder of each module, by its kind, in order."""
    try:
        given = parse_json((folder / MODULES_FILE).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        faults.add(f"cannot be read as JSON: {error}")
        return {}
    if not isinstance(given, list) or not all(isinstance(each, dict) for each in given):
        faults.add("expected a list of modules")
        return {}
    found: dict[str, str] = {}
    for each in given:
        kind, path = str(each.get("type")).rpartition(".")[2], each.get("path", "")
        if kind not in _ORDER or kind in found:
            faults.add(f"names the module {each.get('type')!r:.80}: expected one each of {', '.join(_ORDER)}")
        elif not isinstance(path, str) or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts:
            faults.add(f"places the module {kind} at {path!r:.80}: expected a folder inside this one")
        else:
            found[kind] = path
    if list(found) != [kind for kind in _ORDER if kind in found] or _TRANSFORMER not in found:
        faults.add(f"has the modules {', '.join(found) or 'none'}: expected them in the order {', '.join(_ORDER)}")
    return found


def _pooling(folder: Path, place: str, faults: Faults) -> Pooling:
    said = _config(folder, place, faults)
    mode = said.get("pooling_mode")
    known = {pooling.value: pooling for pooling in _FLAGS.values()}
    flags = [key for key, value in said.items() if key.startswith("pooling_mode_") and value is True]
    found = known.get(mode) if isinstance(mode, str) else _FLAGS.get(flags[0]) if len(flags) == 1 else None
    if found is None:
        faults.add(f"{place}/{_CONFIG}: pools by {mode or flags}: expected one of {', '.join(known)}")
    return found or Pooling.CLS


def _projected(folder: Path, place: str, faults: Faults) -> int:
    """How many numbers the projection gives."""
    said = _config(folder, place, faults)
    size, activation = said.get("out_features"), str(said.get("activation_function"))
    if said.get("bias") is not False or said.get("use_residual") or activation.rpartition(".")[2] != "Identity":
        faults.add(
            f"{place}/{_CONFIG}: bias is {said.get('bias')}, activation_function {activation}, use_residual "
            f"{said.get('use_residual', False)}: expected a projection without bias, activation and residual"
        )
    if type(size) is not int or size < 1:
        faults.add(f"{place}/{_CONFIG}: out_features is {size!r:.40}: expected an integer above zero")
        return 1
    return size


def _config(folder: Path, place: str, faults: Faults) -> dict[str, Any]:
    path = folder / place / _CONFIG
    try:
        return read_object(path)
    except FileNotFoundError:
        faults.add(f"{place}/{_CONFIG} is missing, which {MODULES_FILE} names")
        return {}


def _files(folder: Path, places: Mapping[str, str]) -> dict[str, bytes]:
    """What clients of such a folder read beside the model, by their paths in it: texts, and the projection's weights."""
    configs = [f"{places[kind]}/{_CONFIG}" for kind in (_POOLING, _DENSE) if kind in places]
    configs += [f"{places[_DENSE]}/{_WEIGHTS}"] if _DENSE in places else []
    paths = [
        path for path in (MODULES_FILE, SENTENCE_CONFIG, _TRANSFORMER_CONFIG, *configs) if (folder / path).is_file()
    ]
    large = next((path for path in paths if (folder / path).stat().st_size > _MAX_BYTES), None)
    if large is not None:
        raise InputError(f"{folder / large}: is larger than {_MAX_BYTES} bytes")
    return {path: (folder / path).read_bytes() for path in paths}
