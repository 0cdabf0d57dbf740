"""GGUF files of any writer: which model and quant they are, and which parts belong together.

Source: llama.cpp `include/llama.h`, `enum llama_ftype`; `src/llama.cpp`, `llama_split_path`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ...graph.errors import InputError, UsageError
from ...graph.families import FAMILIES
from ...graph.roles import Trait
from ...quantize.encoding import get_encoding
from ...quantize.gguf_file.header import TensorInfo
from ...quantize.gguf_file.reader import GgufFile, is_gguf, read_gguf, tensor_nbytes
from ...quantize.gguf_file.tensor_names import family_of, tensor_address
from ...quantize.policies.gguf import FILE_TYPES, POLICIES
from ..naming import part_name, read_part_name
from ..recognised import coarsest, most_common, own_file
from ..target import Artifact, ListedTensor

_SUFFIX = ".gguf"
_ARCHITECTURE, _KIND, _FILE_TYPE = "general.architecture", "general.type", "general.file_type"
_NUMBER, _COUNT, _TENSORS = "split.no", "split.count", "split.tensors.count"
# What else is kept as GGUF beside a model: what llama-imatrix counts, what an image encoder or an adapter holds.
_AUXILIARY = frozenset({"imatrix", "mmproj", "adapter", "vocab"})
_MOST_PARTS = 65_535
_GUESSED = 1024  # a bit of the file type: whoever wrote it was not told
# Quants that are not written here, by `enum llama_ftype`.
_OTHER_FILE_TYPES = {
    19: "IQ2_XXS", 20: "IQ2_XS", 21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 26: "IQ3_S", 27: "IQ3_M",
    28: "IQ2_S", 29: "IQ2_M", 31: "IQ1_M", 36: "TQ1_0", 37: "TQ2_0", 39: "NVFP4", 40: "Q1_0", 41: "Q2_0",
}  # fmt: skip
_NAMES = {number: name for name, number in FILE_TYPES.items()} | _OTHER_FILE_TYPES


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The models of a folder, or the one that a file, or the first of its parts, belongs to.

    Raises: InputError for a file that is damaged, one of parts that are not all there, or of another architecture.
    """
    if not path.is_dir():
        return (_artifact(path),) if is_gguf(path) else ()
    files = sorted(path.glob(f"*{_SUFFIX}"))
    firsts = dict.fromkeys(_first(file, files) for file in files)
    return tuple(_artifact(file) for file in firsts if read_gguf(file).metadata.get(_KIND) not in _AUXILIARY)


def _first(file: Path, files: Sequence[Path]) -> Path:
    """The first part of a split file, if it lies there; a part alone, or a whole file, itself."""
    found = read_part_name(file.name, _SUFFIX)
    first = file.with_name(part_name(found.stem, 1, found.count, _SUFFIX)) if found else file
    return first if first in files else file


def _artifact(path: Path) -> Artifact:
    parts = [read_gguf(part) for part in _parts(read_gguf(path))]
    said = {key: value for part in parts for key, value in part.metadata.items()}
    tensors = [tensor for part in parts for tensor in part.tensors]
    _refuse_others(path, said)
    wanted = said.get(_TENSORS, len(tensors))
    if wanted != len(tensors):
        raise InputError(f"{path}: its parts hold {len(tensors)} tensors: expected {wanted}")
    quant, class_name = _quant(said, tensors)
    files = tuple(part.path for part in parts)
    return Artifact(files[0], path.parent, "gguf", quant, class_name, files, is_recognised=True)


def _parts(file: GgufFile) -> list[Path]:
    """Every part of the file that this is one of."""
    number, count = _place(file)
    if count <= 1:
        return [file.path]
    name = read_part_name(file.path.name, _SUFFIX)
    if name is None or (name.number, name.count) != (number, count):
        raise InputError(
            f"{file.path}: is part {number} of {count}, which its name does not say: expected "
            f"{part_name('NAME', number, count, _SUFFIX)}, as llama.cpp finds the others"
        )
    paths = [own_file(file.path, part_name(name.stem, i, count, _SUFFIX)) for i in range(1, count + 1)]
    for i, path in enumerate(paths, start=1):
        if (found := _place(read_gguf(path))) != (i, count):
            raise InputError(f"{path}: says that it is part {found[0]} of {found[1]}: expected {i} of {count}")
    return paths


def _place(file: GgufFile) -> tuple[int, int]:
    """Which part a file is, from 1, and of how many."""
    number, count = file.metadata.get(_NUMBER, 0), file.metadata.get(_COUNT, 1)
    if not isinstance(number, int) or not isinstance(count, int) or count > _MOST_PARTS:
        raise InputError(f"{file.path}: says that it is part {number!r:.40} of {count!r:.40}")
    return number + 1, count


def _refuse_others(path: Path, said: Mapping[str, Any]) -> None:
    """Raises InputError for a file that is no language model of a family here."""
    kind, architecture = said.get(_KIND, "model"), said.get(_ARCHITECTURE)
    if kind in _AUXILIARY:
        raise InputError(f"{path}: holds no language model: its {_KIND} is '{kind}'")
    if family_of(architecture) is None:
        known = ", ".join(dict.fromkeys(family.gguf.architecture for family in FAMILIES if family.gguf))
        raise InputError(f"{path}: holds a model of architecture '{architecture}': expected one of {known}")


def _quant(said: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> tuple[str, str]:
    """The quant's name and class: what the file says it is, if its matrices are so; else what most of them are."""
    layers, tables = _sizes(said, tensors)
    sizes = layers or tables
    most = most_common(sizes) or "F32"
    stored = coarsest(map(_class_name, layers | tables))
    number = said.get(_FILE_TYPE)
    name = _NAMES.get(number & ~_GUESSED) if isinstance(number, int) else None
    policy = next((policy for policy in POLICIES if policy.name == name), None)
    if policy is not None:
        base = policy.rules[-1].encoding
        if {base, *_fallbacks(base, policy.fallbacks)} & sizes.keys():
            return policy.name, coarsest((policy.class_name, stored))
    elif name is not None and most not in FILE_TYPES:  # a mixture of types that are not written here
        return name, stored
    return most, stored


def _fallbacks(encoding: str, fallbacks: Mapping[str, str]) -> Iterable[str]:
    while encoding in fallbacks:
        encoding = fallbacks[encoding]
        yield encoding


def _sizes(said: Mapping[str, Any], tensors: Sequence[TensorInfo]) -> tuple[Counter[str], Counter[str]]:
    """Elements of each type of what a quant narrows: inside the layers, and of the token table and the head."""
    family = family_of(said[_ARCHITECTURE])
    layers, tables = Counter[str](), Counter[str]()
    for tensor in tensors:
        address = None if family is None else tensor_address(tensor.name, family)
        if address and address[0].trait in (Trait.TABLE, Trait.HEAD):
            tables[tensor.encoding] += math.prod(tensor.shape)
        elif len(tensor.shape) > 1 and (address is None or address[0].trait in (Trait.MATRIX, Trait.EXPERTS)):
            layers[tensor.encoding] += math.prod(tensor.shape)
    return layers, tables


def _class_name(encoding: str) -> str:
    """Of a type that can only be listed, that of its bits."""
    try:
        return get_encoding(encoding).class_name
    except UsageError:
        return "q4" if encoding == "NVFP4" else "q8" if encoding in ("Q8_1", "Q8_K") else "q3"


def listed(artifact: Artifact) -> tuple[ListedTensor, ...]:
    """Every tensor of all parts."""
    files = [read_gguf(path) for path in artifact.files]
    return tuple(ListedTensor(t.name, t.encoding, tensor_nbytes(t)) for file in files for t in file.tensors)
