"""MLX folders of any writer, such as `mlx_lm.convert`: which quant they are, and which files belong to them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from ...graph.config import CONFIG_FILE
from ...graph.families.family import Family
from ...graph.json_text import read_object
from ...graph.roles import Address, Role, Trait
from ...graph.source.config_file import load_config
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding
from ...quantize.encodings.mlx_pack import GroupEncoding
from ..encoded import encoding_of, stored_under
from ..recognised import coarsest, folder_artifact, model_folders, most_common
from ..target import Artifact, ListedTensor, NotJudged
from .folder import is_mlx_folder
from .parameters import mlx_names
from .reader import read_weights

# What mlx-lm and its tokenizer read beside the weights.
_BESIDE = frozenset({".json", ".jinja", ".txt", ".model", ".py"})
_NARROWED = (Trait.MATRIX, Trait.EXPERTS)
_TABLES = (Trait.TABLE, Trait.HEAD)
_GROUP = 64


def recognise(path: Path) -> tuple[Artifact, ...]:
    """The model of a folder, those of the folders in it, or the one whose config or weights are named.

    Raises: InputError for a folder that is damaged, not whole, or of a model that is not of our families.
    """
    return tuple(_artifact(folder) for folder in model_folders(path) if _is_mlx(folder))


def _artifact(folder: Path) -> Artifact:
    encodings = encodings_of(_weights(folder))
    family = load_config(folder).family
    class_name = coarsest(e.class_name for a, e in encodings.items() if a[0].trait in (*_NARROWED, *_TABLES))
    return folder_artifact(
        folder, target="mlx", quant=quant_of(encodings, family), class_name=class_name, beside=_BESIDE
    )


def _is_mlx(folder: Path) -> bool:
    """As `is_mlx_folder`, and of one whose settings say so while its weights are not all there."""
    config = folder / CONFIG_FILE
    return config.is_file() and (is_mlx_folder(folder) or isinstance(read_object(config).get("quantization"), Mapping))


def _weights(folder: Path) -> Mapping[Address, TensorView]:
    try:
        return read_weights(folder)
    except NotJudged as error:
        return error.decoded


def encodings_of(weights: Mapping[Address, TensorView]) -> dict[Address, Encoding]:
    """What each weight is stored as."""
    found = ((address, encoding_of(view)) for address, view in weights.items())
    return {address: encoding for address, encoding in found if encoding is not None}


def quant_of(encodings: Mapping[Address, Encoding], family: Family) -> str:
    """As mlx-community names it: `4bit`, `mxfp4`, `bf16`; `mixed_3_6` where bits differ inside the layers by no rule of
    mlx-lm's class of the family.
    """
    roles = {role for role, _ in encodings if role.trait in _NARROWED} - mlx_names(family).wide
    narrowed = {address: each for address, each in encodings.items() if address[0] in roles}
    packed = {address: each for address, each in narrowed.items() if isinstance(each, GroupEncoding)}
    sizes = Counter(_word(each) for each in (packed or narrowed).values())
    if len(sizes) > 1 and packed:
        bits = {each.bits for each in packed.values()}
        return f"mixed_{min(bits)}_{max(bits)}"
    name, table = most_common(sizes) or "f32", encodings.get((Role.EMBED, None))
    if isinstance(table, GroupEncoding) and _word(table) != name:
        return f"{name}-e{table.bits}"
    return name


def _word(encoding: Encoding) -> str:
    if not isinstance(encoding, GroupEncoding):
        return encoding.name.lower()
    if encoding.mode != "affine":
        return encoding.mode
    return f"{encoding.bits}bit" + (f"-g{encoding.block}" if encoding.block != _GROUP else "")


def listed(artifact: Artifact) -> tuple[ListedTensor, ...]:
    """Every weight that is read, by mlx-lm's name of it."""
    return tuple(
        ListedTensor(view.name, view.encoding.name, view.n_rows * view.encoding.row_nbytes(view.n_cols))
        for view in stored_under(_weights(artifact.folder).values())
    )
