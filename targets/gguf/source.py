"""A GGUF file of any writer as a source: its model as a weight graph, whose weights are what llama.cpp multiplies by.

| of the file                | becomes                                                                               |
|----------------------------|---------------------------------------------------------------------------------------|
| tensors                    | weights, decoded as they are read; their grids and blocks go on where a format has them |
| float32 vectors            | in the float type of the rest, where that holds every value                            |
| metadata                   | config, tokenizer, special tokens, templates, sampling and stop ids                    |
| a factor folded into experts | stays in them: the config has none                                                   |
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ...graph.config import CONFIG_FILE, ModelConfig
from ...graph.dtypes import TORCH_NAMES, WEIGHT_DTYPES, DType, Float32
from ...graph.errors import Faults, InputError
from ...graph.graph import WeightGraph
from ...graph.opening import graph_of
from ...graph.roles import Address, Role, Trait
from ...graph.source.assets import DEFAULT_TEMPLATE, Assets
from ...graph.source.open_file import OpenFile, SourceFiles
from ...graph.source.tokenizer import Tokenizer
from ...graph.tensor import TensorView
from ...quantize.encoding import get_encoding
from ...quantize.gguf_file.header import TensorInfo
from ...quantize.gguf_file.reader import GgufFile, read_gguf
from ...quantize.gguf_file.tensor_names import CONSTANTS, families_of, gguf_names
from ...quantize.stored import StoredPart
from ..encoded import SourceTensor
from ..naming import read_part_name
from ..target import Artifact, NotJudged
from .card import card_of
from .config_reader import read_config
from .numbers import read_numbers, unread_keys
from .reader import metadata_of, weights_of
from .recognise import recognise
from .vocab_reader import Vocabulary, read_vocabulary

SUFFIX = ".gguf"
# Keys by which llama.cpp stretches positions.
_SCALED_ROPES = ("rope.scale_linear",)
_LARGE = (Trait.TABLE, Trait.HEAD, Trait.MATRIX, Trait.EXPERTS)
_FLOAT_NAMES = {dtype: name for name, dtype in TORCH_NAMES.items()}


def open_source(path: Path, *, name: str | None = None) -> WeightGraph | None:
    """The model of a file, of the file that a part belongs to, or of the only file of a folder; None of anything else.

    Raises: InputError for a damaged file, another kind of model, several in a folder, or what is not decoded here.
    """
    if path.is_dir() and ((path / CONFIG_FILE).is_file() or any(path.glob("*.safetensors"))):
        return None
    found = recognise(path)
    if len(found) > 1:
        names = ", ".join(each.path.name for each in found[:4]) + (f" and {len(found) - 4} more" if found[4:] else "")
        raise InputError(f"{path}: holds the models {names}: name the file of one")
    return _opened(found[0], name) if found else None


def _opened(artifact: Artifact, name: str | None) -> WeightGraph:
    path = artifact.path
    files = {each: OpenFile(each) for each in artifact.files}
    parts = [read_gguf(each) for each in artifact.files]
    said = metadata_of(parts)
    families = families_of(said["general.architecture"])
    if not families:
        raise InputError(f"{path}: holds a model of no family here")  # which `recognise` has refused
    dtype, is_packed = _float_type(parts)
    views = _weights(parts, said, files, dtype)
    faults = Faults()
    arch = gguf_names(families[0]).architecture
    numbers, unread = read_numbers(said, arch, faults), unread_keys(said, arch)
    for key in (f"{arch}.{name}" for name in _SCALED_ROPES):
        if key in unread and said[key] not in ("none", 1.0):
            faults.add(f"{key} is {said[key]!r:.40}: a rope that is scaled is not read here")
    faults.raise_if_any(str(path))
    if numbers.is_causal is False or numbers.pooling or numbers.projected:
        raise InputError(f"{path}: holds a model that gives vectors: convert the checkpoint it was made from")
    vocabulary = read_vocabulary(said, path)
    config = read_config(
        families,
        numbers,
        {address: view.shape for address, view in views.items()},
        tables=_tables(parts, files),
        ids=_ids(vocabulary, dtype),
        where=path,
    )
    return graph_of(
        config,
        _narrowed(views, dtype),
        name=name or _name(path),
        folder=path.parent,
        tokenizer=None if vocabulary.tokenizer is None else Tokenizer(path, raw=vocabulary.tokenizer),
        assets=_assets(said, vocabulary, config),
        files=SourceFiles(list(files.values()), are_all=True),
        quantised_as=artifact.quant if is_packed else None,
        notes=(f"of the metadata {', '.join(unread[:4])} {'is' if len(unread) == 1 else 'are'} not read",)
        if unread
        else (),
    )


def _name(path: Path) -> str:
    """The file's name without what says that it is a part."""
    part = read_part_name(path.name, SUFFIX)
    return part.stem if part else path.stem


def _float_type(parts: Iterable[GgufFile]) -> tuple[DType, bool]:
    """The float type of most matrices, and whether any is packed: then it is that of their scales."""
    types = Counter(
        tensor.encoding
        for part in parts
        for tensor in part.tensors
        if len(tensor.shape) > 1 and tensor.name not in CONSTANTS
    )
    floats = {dtype.value: n for dtype in WEIGHT_DTYPES if (n := types.get(dtype.value, 0))}
    if len(floats) < len(types):
        return DType.F16, True
    narrow = {name: n for name, n in floats.items() if name != DType.F32.value}  # kernels and routers always are F32
    return DType(max(narrow, key=narrow.__getitem__)) if narrow else DType.F32, False


def _weights(
    parts: Sequence[GgufFile], said: Mapping[str, Any], files: Mapping[Path, OpenFile], dtype: DType
) -> dict[Address, TensorView]:
    def view_of(file: GgufFile, info: TensorInfo) -> TensorView:
        own = DType(info.encoding) if info.encoding in _FLOATS else dtype
        part = StoredPart(file.path, file.data_offset + info.offset, files[file.path])
        return SourceTensor(info.name, info.shape, get_encoding(info.encoding), (part,), own)

    try:
        return weights_of(parts, said, view_of)
    except NotJudged as error:
        raise InputError(f"{parts[0].path}: has {error}") from None


_FLOATS = frozenset(dtype.value for dtype in WEIGHT_DTYPES)


def _tables(parts: Iterable[GgufFile], files: Mapping[Path, OpenFile]) -> dict[str, Float32]:
    """What the default table of the rope is divided by, where the file says so, by the names of the tensors."""
    return {
        tensor.name: _factors(part, tensor, files)
        for part in parts
        for tensor in part.tensors
        if tensor.name in CONSTANTS
    }


def _factors(part: GgufFile, info: TensorInfo, files: Mapping[Path, OpenFile]) -> Float32:
    if info.encoding != DType.F32.value:
        raise InputError(f"{part.path}: tensor '{info.name}' is {info.encoding}: expected F32")
    place = StoredPart(part.path, part.data_offset + info.offset, files[part.path])
    factors = SourceTensor(info.name, info.shape, get_encoding(info.encoding), (place,), DType.F32).read().reshape(-1)
    if not (factors > 0).all():
        raise InputError(f"{part.path}: tensor '{info.name}' holds {factors.min():g}: expected factors above zero")
    return factors


def _narrowed(views: Mapping[Address, TensorView], dtype: DType) -> dict[Address, TensorView]:
    """With small float32 tensors in the model's float type, where that holds every value: what the converter widened.

    Runtimes that keep one type for all are slowed down by a norm in another.
    """
    return {address: _narrow(address[0], view, dtype) for address, view in views.items()}


def _narrow(role: Role, view: TensorView, dtype: DType) -> TensorView:
    if role.trait in _LARGE or role is Role.EXPERT_BIAS or view.dtype is not DType.F32 or dtype is DType.F32:
        return view
    values, floats = view.read(), get_encoding(dtype.value)
    if isinstance(view, SourceTensor) and np.array_equal(
        floats.decode(*floats.encode(values.reshape(-1, view.n_cols))).reshape(view.shape), values
    ):
        view.dtype = dtype
    return view


def _ids(vocabulary: Vocabulary, dtype: DType) -> dict[str, Any]:
    """Fields of config.json beside the architecture."""
    special = vocabulary.special
    named = {f"{kind}_token_id": special[kind] for kind in ("bos", "eos", "pad") if kind in special}
    return {**named, "dtype": _FLOAT_NAMES[dtype]}


def _assets(said: Mapping[str, Any], vocabulary: Vocabulary, config: ModelConfig) -> Assets:
    templates = dict(vocabulary.templates)
    stops = list(vocabulary.stops)
    ids = {key: config.raw[key] for key in ("bos_token_id", "pad_token_id") if key in config.raw}
    if stops:
        ids["eos_token_id"] = stops[0] if len(stops) == 1 else stops
    return replace(
        Assets(),
        generation_config={**ids, **vocabulary.generation_config},
        tokenizer_config=dict(vocabulary.tokenizer_config),
        chat_template=templates.pop(DEFAULT_TEMPLATE, None),
        named_templates=templates,
        model_card=card_of(said),
    )
