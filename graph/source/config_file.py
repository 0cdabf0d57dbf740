"""Reads `config.json`: finds the family of its model_type, and has it say what the model is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..blocks import VectorHead
from ..config import CONFIG_FILE, ModelConfig
from ..config_fields import Fields
from ..errors import InputError
from ..families import FAMILIES, find_family
from ..families.other_kinds import is_encoder, missing_block, other_kind, retrieval_kind
from ..json_text import read_object
from .parts import text_config
from .sentence_transformers import Modules, read_modules
from .weight_files import instead_hint

# In a config whose names are those that the clients of a format know: the model's own.
OWN_NAMES = "lfm-convert"


def load_config(folder: Path, *, table: tuple[int, ...] | None = None) -> ModelConfig:
    """Reads and normalises `folder/config.json`.

    `table` is the shape of the embedding, where it can be seen: a table that was resized decides the vocabulary's
    size, whatever the config still says.
    Raises: InputError if the file is missing, not JSON, of another architecture, or contradicts itself.
    """
    path = folder / CONFIG_FILE
    try:
        raw, left_out = text_config(with_own_names(read_object(path)))
    except FileNotFoundError:
        raise InputError(
            f"{path}: not found; a checkpoint folder needs config.json{instead_hint(folder)}{_nested_hint(folder)}"
        ) from None
    modules = find_modules(raw, folder)
    if modules is None and (kind := retrieval_kind(raw, folder)) is not None:
        raise InputError(f"{folder}: is {kind}: {_expected()}")
    notes = [left_out] if left_out else []
    if (
        table is not None
        and len(table) == 2
        and table[1] == raw.get("hidden_size")
        and table[0] != raw.get("vocab_size")
    ):
        said = raw.get("vocab_size")
        notes.append(f"{CONFIG_FILE} says vocab_size {said}, the embedding has {table[0]} rows: that is used")
        raw = {**raw, "vocab_size": table[0]}
    config = parse_config(raw, where=str(path), vectors=modules.head if modules else None)
    return replace(config, notes=(*config.notes, *notes))


def find_modules(raw: Mapping[str, Any], folder: Path) -> Modules | None:
    """What comes after the last layer of a model that gives vectors; None of any other. Raises: as `read_modules`."""
    return read_modules(folder) if is_encoder(raw, find_family(raw.get("model_type")), folder) else None


def with_own_names(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The object of a config file, with the model's own names where a format called it by others."""
    own = raw.get(OWN_NAMES)
    found = {key: value for key, value in raw.items() if key != OWN_NAMES}
    return {**found, **own} if isinstance(own, Mapping) else found


def parse_config(raw: Mapping[str, Any], *, where: str = CONFIG_FILE, vectors: VectorHead | None = None) -> ModelConfig:
    """Normalises the JSON object of a config file; `vectors` is what its model has in a head's place, if that is so.

    Raises: InputError with every contradiction and every missing field.
    """
    if vectors is None and (kind := other_kind(raw)) is not None:
        raise InputError(f"{where}: is {kind}: {_expected()}")
    family = find_family(raw.get("model_type"))
    if family is None:
        raise InputError(f"{where}: {_unknown(raw.get('model_type'))}")
    read = Fields(raw, aliases=family.aliases, defaults=family.defaults)
    if raw.get("auto_map") and vectors is None:
        read.notes.append("auto_map names custom code, which is never run")
    vocab_size, scales = read.number("vocab_size", int), family.read_scales(read)
    config = ModelConfig(
        family=family,
        model_type=family.model_type,
        hidden_size=read.number("hidden_size", int),
        vocab_size=vocab_size,
        layers=family.read_layers(read),
        final_norm=family.read_norm(read),
        context_length=read.number("max_position_embeddings", int),
        tied=read.flag("tie_word_embeddings", True) or vectors is not None,
        embedding_scale=scales.embedding,
        logit_scale=scales.logits,
        vectors=vectors,
        bos_token_id=read.token_id("bos_token_id", vocab_size=vocab_size),
        eos_token_ids=read.token_ids("eos_token_id", vocab_size=vocab_size),
        pad_token_id=read.token_id("pad_token_id", vocab_size=vocab_size),
        dtype=str(raw.get("dtype") or raw.get("torch_dtype") or "bfloat16"),
        raw=dict(raw),
        notes=tuple(read.notes),
    )
    read.faults.raise_if_any(where)
    return config


def _unknown(model_type: object) -> str:
    block = missing_block(model_type)
    needed = f"which has {block}: they need their block in graph/blocks.py; " if block else ""
    return (
        f"unknown architecture: model_type is {model_type!r}, {needed}expected one of {', '.join(_model_types())}; "
        "another family needs its file in graph/families"
    )


def _model_types() -> list[str]:
    return [family.model_type for family in FAMILIES]


def _expected() -> str:
    return f"expected a causal language model of {' or '.join(_model_types())}"


def _nested_hint(folder: Path) -> str:
    """Names the folder that was probably meant: a snapshot of a hub cache, or a training run's last checkpoint."""
    found = sorted(path.parent for pattern in ("snapshots/*", "*") for path in folder.glob(f"{pattern}/{CONFIG_FILE}"))
    return f"; {found[-1]} has one" if found else ""
