"""Which files of a folder hold a checkpoint's weights, and what a folder without any holds instead."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..files import is_file
from ..json_text import parse_json
from .adapters import adapter_sentence, is_adapter_file
from .safetensors import is_pointer

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
_SHARD = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")
_MOST_SHARDS = 10_000
# What trainers keep beside the weights, as pickles.
_OF_TRAINERS = ("training_args.", "optimizer.", "scheduler.", "scaler.", "rng_state")

# What else a folder may hold, most telling first: file name endings, and the words for it.
_MADE = "made from a checkpoint; convert the checkpoint itself"
_PICKLE = "pickle weights are refused, save as safetensors"
_OTHERS: tuple[tuple[tuple[str, ...], str], ...] = (
    ((".gguf",), "a GGUF file: name the file itself"),
    ((".onnx", ".onnx_data", ".onnx.data"), f"an ONNX model, {_MADE}"),
    ((".pte",), f"an ExecuTorch program, {_MADE}"),
    ((".tflite", ".litertlm", ".task"), f"a LiteRT model, {_MADE}"),
    ((".mlmodel", ".mlpackage", ".mlmodelc"), f"a Core ML model, {_MADE}"),
    ((".npz",), "arrays of numpy or MLX: save as safetensors"),
    ((".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"), _PICKLE),
    ((".distcp",), "a training state of PyTorch in parts: merge it and save as safetensors"),
    (("zero_to_fp32.py",), "a training state of DeepSpeed: run it with --safe_serialization"),
    ((".h5", ".msgpack"), "weights of another framework: save as safetensors"),
)


@dataclass(frozen=True)
class WeightFiles:
    """The files to read, `index` if one places the tensors, and a note on how they were found."""

    names: tuple[str, ...]
    index: WeightIndex | None = None
    note: str | None = None


@dataclass(frozen=True)
class WeightIndex:
    """Tensor name to file name, and the bytes of all, as the index gives them."""

    name: str
    weight_map: Mapping[str, str]
    total_size: Any


def find_weights(folder: Path) -> WeightFiles:
    """One file, shards with an index, shards that say how many they are, or the only file under another name.

    Raises: InputError naming what is missing, or what there is instead.
    """
    name = _index_name(folder)
    if name is not None:
        index = _read_index(folder / name)
        if SINGLE_FILE not in index.weight_map.values() and (folder / SINGLE_FILE).exists():
            raise InputError(f"{folder}: holds both {SINGLE_FILE} and {name}: expected one; remove the stale one")
        names = tuple(sorted(set(index.weight_map.values())))
        _refuse_missing(folder, names)
        return WeightFiles(names, index)
    if (folder / SINGLE_FILE).is_file():
        return WeightFiles((SINGLE_FILE,))
    return _unindexed(folder)


def has_weights(folder: Path) -> bool:
    """Whether all weights of a checkpoint are there to be read: no shard is missing, none is a pointer to itself."""
    try:
        names = find_weights(folder).names
    except InputError:
        return False
    return not any(is_pointer(folder / name) for name in names)


def found_instead(names: Iterable[str]) -> str | None:
    """`x.gguf: a GGUF file, …` for the most telling of some file names; None if none tells anything."""
    names = sorted(name for name in names if not name.startswith(_OF_TRAINERS))
    for endings, words in _OTHERS:
        found = next((name for name in names if name.lower().endswith(endings)), None)
        if found is not None:
            return f"{found}: {words}"
    return None


def instead_hint(folder: Path) -> str:
    """What a folder holds in place of a checkpoint, in brackets; empty if nothing is known.

    A package is such a folder itself. Of others in it only `onnx/` and parts of a training state count.
    """
    inner = (path for pattern in ("onnx/*", "*/*.distcp") for path in folder.glob(pattern))
    found = found_instead(p.name for p in (*folder.glob("*"), folder)) or found_instead(
        p.relative_to(folder).as_posix() for p in inner
    )
    return f" (found {found})" if found else ""


def refuse_adapter_alone(folder: Path) -> None:
    """Raises InputError, naming the base, for a folder whose only weights are an adapter's."""
    sentence = adapter_sentence(folder)
    names = [p.name for p in folder.glob("*") if not is_adapter_file(p)]
    others = any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names) or found_instead(names)
    if sentence is not None and not others:
        raise InputError(f"{folder}: {sentence}")


def _index_name(folder: Path) -> str | None:
    """The usual name, or the only index under another, such as that of a variant."""
    if (folder / INDEX_FILE).exists():
        return INDEX_FILE
    others = [p.name for p in folder.glob("*.safetensors.index.json") if not is_adapter_file(p)]
    return others[0] if len(others) == 1 and not (folder / SINGLE_FILE).exists() else None


def _unindexed(folder: Path) -> WeightFiles:
    names = sorted(p.name for p in folder.glob("*.safetensors") if p.is_file() and not is_adapter_file(p))
    sets: dict[tuple[str, int], list[str]] = defaultdict(list)
    for name in names:
        match = _SHARD.fullmatch(name)
        if match and 0 < int(match["count"]) <= _MOST_SHARDS:
            sets[match["stem"], int(match["count"])].append(name)
    if len(sets) == 1:
        return _shards(folder, *sets.popitem())
    if len(names) == 1:
        return WeightFiles((names[0],), note=f"{names[0]} is read as the weights: there is no {SINGLE_FILE}")
    if names:
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        raise InputError(
            f"{folder}: holds {shown}, and neither {SINGLE_FILE} nor an index says which are the weights: "
            f"rename the one that is to {SINGLE_FILE}, or add {INDEX_FILE}"
        )
    raise InputError(f"{folder}: missing {SINGLE_FILE}{instead_hint(folder)}")


def _shards(folder: Path, key: tuple[str, int], found: list[str]) -> WeightFiles:
    """Shards of which each says its number and how many there are."""
    stem, count = key
    digits = len(found[0].removesuffix(".safetensors").rpartition("-")[2])
    expected = tuple(f"{stem}-{number:0{digits}d}-of-{count:0{digits}d}.safetensors" for number in range(1, count + 1))
    if found[0].startswith(f"{stem}-{0:0{digits}d}-"):  # some writers count from zero
        expected = tuple(f"{stem}-{number:0{digits}d}-of-{count:0{digits}d}.safetensors" for number in range(count))
    _refuse_missing(folder, expected)
    return WeightFiles(expected, note=f"the {count} shards are read by their names: there is no {INDEX_FILE}")


def _refuse_missing(folder: Path, names: Iterable[str]) -> None:
    missing = [name for name in names if not is_file(folder / name)]
    if missing:
        more = len(missing) - 8
        raise InputError(
            f"{folder}: missing {', '.join(missing[:8])}" + (f" and {more} more shards" if more > 0 else "")
        )


def _read_index(path: Path) -> WeightIndex:
    try:
        index = parse_json(path.read_bytes())
        weight_map, metadata = index["weight_map"], index.get("metadata")
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path}: not a safetensors index: {error!r}") from None
    if not isinstance(weight_map, dict) or not weight_map:
        raise InputError(f"{path}: weight_map must be a non-empty object of tensor name to file name")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not _is_plain_name(shard):
            raise InputError(f"{path}: tensor '{name}' is placed in {shard!r}: expected a file name inside the folder")
    return WeightIndex(path.name, weight_map, metadata.get("total_size") if isinstance(metadata, dict) else None)


def _is_plain_name(name: str) -> bool:
    forbidden = ("/", "\\", "\0", ":")
    return bool(name) and name not in (".", "..") and not any(mark in name for mark in forbidden)
