"""Folders of compressed-tensors of any writer, such as llm-compressor: which quant they are, and which files belong to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.json_text import read_object
from ...graph.roles import Trait
from ...graph.source.checkpoint import has_weights
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding
from ...quantize.encodings.ct_base import CtEncoding
from ...quantize.encodings.ct_fp4 import MxFp4, NvFp4
from ...quantize.encodings.ct_fp8 import ChannelFp8
from ...quantize.encodings.ct_int import ChannelInt8, GroupInt
from ...quantize.stored import EncodedTensor
from ..encoded import stored_under
from ..recognised import coarsest, folder_artifact, model_folders, most_common
from ..target import Artifact, ListedTensor, NotJudged
from .reader import read_weights
from .schemes import FIELD, METHOD

# What transformers reads beside the weights.
_BESIDE = frozenset({".json", ".jinja", ".txt", ".model"})
_QUANTISED = (Trait.MATRIX, Trait.EXPERTS)
_GROUP = 128


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The model of a folder, those of the folders in it, or the one whose config or weights are named.

    Raises: InputError for a folder that is damaged, not whole, or of a model that is not of our families.
    """
    return tuple(_artifact(folder) for folder in model_folders(path) if is_compressed_folder(folder))


def is_compressed_folder(folder: Path) -> bool:
    """Whether the config says so, and weights are there."""
    return bool(_settings(folder)) and has_weights(folder)


def _settings(folder: Path) -> Mapping[str, Any]:
    """The config's quantization, if it is compressed-tensors'."""
    config = folder / CONFIG_FILE
    found = read_object(config).get(FIELD) if config.is_file() else None
    return found if isinstance(found, Mapping) and found.get("quant_method") == METHOD else {}


def _artifact(folder: Path) -> Artifact:
    views = list(_stored(folder))
    quant = _quant(folder, Counter(view.encoding for trait, view in views if trait in _QUANTISED))
    class_name = coarsest(view.encoding.class_name for trait, view in views if view.n_rows > 1)
    return folder_artifact(folder, target=METHOD, quant=quant, class_name=class_name, beside=_BESIDE)


def _stored(folder: Path) -> Iterator[tuple[Trait, EncodedTensor]]:
    """Every stored matrix and vector that could be read, an expert at a time."""
    try:
        found: Mapping[Any, TensorView] = read_weights(folder)
    except NotJudged as error:
        found = error.decoded
    seen = set[int]()
    for (role, _), view in found.items():
        for one in stored_under([view]):
            if id(one) not in seen:
                seen.add(id(one))
                yield role.trait, one


def _quant(folder: Path, encodings: Counter[Encoding]) -> str:
    """As llm-compressor calls what most of the matrices are stored as."""
    words = Counter[str]()
    rounds = any(
        group.get("input_activations")
        for group in _settings(folder).get("config_groups", {}).values()
        if isinstance(group, Mapping)
    )
    for encoding, n in encodings.items():
        if isinstance(encoding, CtEncoding):
            words[_word(encoding, rounds=rounds)] += n
    return most_common(words) or "unknown"


def _word(encoding: CtEncoding, *, rounds: bool) -> str:
    if isinstance(encoding, GroupInt):
        group = "" if encoding.block == _GROUP else f"-g{encoding.block}"
        return f"W{encoding.bits}A16{group}{'' if encoding.is_symmetric else '-asym'}"
    if isinstance(encoding, ChannelInt8):
        return "W8A8"
    if isinstance(encoding, NvFp4 | MxFp4):
        return f"{'NV' if isinstance(encoding, NvFp4) else 'MX'}FP4{'' if rounds else 'A16'}"
    return "FP8" if isinstance(encoding, ChannelFp8) else "FP8_BLOCK"


def listed(artifact: Artifact) -> tuple[ListedTensor, ...]:
    """Every weight that is read, by transformers' name of it."""
    return tuple(
        ListedTensor(view.name, view.encoding.name, view.encoding.nbytes(view.shape))
        for _, view in _stored(artifact.folder)
    )
