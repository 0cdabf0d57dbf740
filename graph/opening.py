"""Opens a checkpoint as a weight graph: which weights its blocks demand, and where its family keeps them.

`declare` needs a config only; `bind` accounts for every tensor of a checkpoint exactly once and reports all faults
together.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np

from .config import CONFIG_FILE, ModelConfig
from .dtypes import DType
from .errors import Faults, InputError
from .families import FAMILIES
from .families.places import Shelf
from .graph import Layer, Weight, WeightGraph
from .roles import Address, Role
from .source.adapters import adapter_note, unmerged_sentence, unmerged_tensor
from .source.assets import Assets, read_assets
from .source.checkpoint import Checkpoint
from .source.config_file import find_modules, load_config
from .source.open_file import SourceFiles
from .source.packed.methods import unpack
from .source.packed.taking import Unpacked
from .source.quantized import configured_method, quantized_weights
from .source.stops import clean_generation, stop_notes
from .source.tokenizer import Tokenizer, missing_tokenizer, read_tokenizer, settle_tokenizer
from .source.weight_files import refuse_adapter_alone
from .tensor import DeclaredTensor, ReshapedTensor, Shape, TensorView


@dataclass(frozen=True)
class Slot:
    """One weight the config demands."""

    role: Role
    layer: int | None
    shape: Shape


def declare(config: ModelConfig) -> tuple[Slot, ...]:
    """Every weight of a model with this config, in model order."""
    table = (config.vocab_size, config.hidden_size)
    top = {Role.EMBED: table, Role.FINAL_NORM: (config.hidden_size,), **({} if config.tied else {Role.LM_HEAD: table})}
    if config.vectors is not None and config.vectors.projected is not None:
        top[Role.PROJECTION] = (config.vectors.projected, config.hidden_size)
    slots = [Slot(role, None, shape) for role, shape in top.items()]
    for layer, branches in enumerate(config.layers):
        for branch in branches:
            slots += [Slot(role, layer, shape) for role, shape in branch.shapes(config.hidden_size).items()]
    return tuple(slots)


def open_graph(
    folder: Path, *, name: str | None = None, weights: bool = True, applied: Sequence[Path] = ()
) -> WeightGraph:
    """The weight graph of a checkpoint folder; of its config alone with `weights=False`. `applied` are the folders of
    adapters that will be merged into it.

    Raises: InputError with all faults of the config, the files, the tensors or the tokenizer.
    """
    if weights or not (folder / CONFIG_FILE).is_file():
        refuse_adapter_alone(folder)
    config = load_config(folder)
    modules = None if config.vectors is None else find_modules(config.raw, folder)
    checkpoint = None
    if weights:
        checkpoint = Checkpoint(folder, projection=modules.dense if modules else None)
        config = load_config(folder, table=_table_shape(checkpoint))
    if (note := adapter_note(folder, applied)) is not None:
        config = replace(config, notes=(*config.notes, note))
    assets = replace(read_assets(folder), retrieval=dict(modules.files) if modules else {})
    notes: list[str] = []
    tokenizer = read_tokenizer(folder, config, assets, note=notes.append)
    config, assets = _settle_stops(config, assets, tokenizer)
    name = name or model_name(folder)
    if checkpoint is None:
        notes = [*config.notes, *notes]
        return _assemble(name, folder, config, partial(_declared_view, config), tokenizer, assets, None, tuple(notes))
    if tokenizer is None:
        notes.append(missing_tokenizer(folder))
    config, unpacked = settle_quantization(config, checkpoint)
    config = settle_head(config, unpacked)
    views, dropped = bind(config, unpacked, folder)
    graph = _assemble(
        name, folder, config, views.__getitem__, tokenizer, assets, checkpoint,
        (*config.notes, *checkpoint.notes, *unpacked.notes, *dropped, *notes),
    )  # fmt: skip
    return replace(graph, quantised_as=unpacked.quantised_as)


def graph_of(
    config: ModelConfig,
    views: Mapping[Address, TensorView],
    *,
    name: str,
    folder: Path,
    tokenizer: Tokenizer | None,
    assets: Assets,
    files: SourceFiles,
    quantised_as: str | None,
    notes: Sequence[str] = (),
) -> WeightGraph:
    """The weight graph of a source whose weights are known by what they are, such as an artifact's.

    Raises: InputError with every weight that is missing, of another shape, or of no such model.
    """
    found, told = dict(views), list[str]()
    if tokenizer is not None:
        tokenizer = settle_tokenizer(tokenizer, config, assets, note=told.append)
    config, assets = _settle_stops(config, assets, tokenizer)
    faults, slots = Faults(), dict[Slot, TensorView]()
    for slot in declare(config):
        view = found.pop((slot.role, slot.layer), None)
        where = slot.role.value if slot.layer is None else f"{slot.role.value} of layer {slot.layer}"
        if view is None:
            faults.add(f"{where} is missing")
        elif view.shape == slot.shape:
            slots[slot] = view
        elif tuple(n for n in view.shape if n != 1) == tuple(n for n in slot.shape if n != 1):
            slots[slot] = ReshapedTensor(view, slot.shape)
        else:
            faults.add(f"'{view.name}' has shape {list(view.shape)}: expected {list(slot.shape)}")
    for view in found.values():
        faults.add(f"'{view.name}' is not part of the model that the config describes")
    faults.raise_if_any(str(files.files[0].path))
    if tokenizer is None:
        told.append(f"{files.files[0].path} has no tokenizer: artifacts take token ids only, and no text is compared")
    graph = _assemble(name, folder, config, slots.__getitem__, tokenizer, assets, files, (*config.notes, *notes, *told))
    return replace(graph, quantised_as=quantised_as)


def _settle_stops(config: ModelConfig, assets: Assets, tokenizer: Tokenizer | None) -> tuple[ModelConfig, Assets]:
    """Both without what no runtime can read of where a text ends, and with notes on it."""
    generation, cleaned = clean_generation(assets.generation_config, vocab_size=config.vocab_size)
    assets = replace(assets, generation_config=generation)
    return replace(config, notes=(*config.notes, *cleaned, *stop_notes(config, assets, tokenizer))), assets


def _table_shape(checkpoint: Checkpoint) -> Shape | None:
    """The shape of the embedding, or of the head that stands for it; None if there is neither."""
    names = (family.tensor_name(role, None) for family in FAMILIES for role in (Role.EMBED, Role.LM_HEAD))
    found = (checkpoint.tensors.get(name) for name in names)
    return next((tensor.shape for tensor in found if tensor is not None), None)


def model_name(folder: Path) -> str:
    """The folder's name; of a hub cache `models--org--name/snapshots/<hash>`, the model's.

    It goes into files as UTF-8: bytes of a folder's name that are none are replaced.
    """
    folder = folder.resolve()
    if folder.parent.name == "snapshots" and folder.parent.parent.name.startswith("models--"):
        return folder.parent.parent.name.split("--")[-1]
    return os.fsencode(folder.name).decode("utf-8", "replace") or "model"


def _declared_view(config: ModelConfig, slot: Slot) -> TensorView:
    """As checkpoints are saved: all in the config's type, but for the expert biases."""
    dtype = config.float_type
    name = config.family.tensor_name(slot.role, slot.layer)
    return DeclaredTensor(name, slot.shape, DType.F32 if slot.role is Role.EXPERT_BIAS else dtype)


def _assemble(
    name: str,
    folder: Path,
    config: ModelConfig,
    view_of: Callable[[Slot], TensorView],
    tokenizer: Tokenizer | None,
    assets: Assets,
    checkpoint: SourceFiles | None,
    notes: tuple[str, ...],
) -> WeightGraph:
    top: dict[Role, Weight] = {}
    layers: list[dict[Role, Weight]] = [{} for _ in range(config.n_layers)]
    for slot in declare(config):
        home = top if slot.layer is None else layers[slot.layer]
        home[slot.role] = Weight(slot.role, slot.layer, view_of(slot))
    return WeightGraph(
        name=name,
        folder=folder,
        config=config,
        top=top,
        layers=tuple(Layer(i, config.layers[i], own) for i, own in enumerate(layers)),
        tokenizer=tokenizer,
        assets=assets,
        checkpoint=checkpoint,
        notes=notes,
    )


def settle_quantization(config: ModelConfig, checkpoint: Checkpoint) -> tuple[ModelConfig, Unpacked]:
    """The tensors as weights: packed ones are decoded as they are read.

    The config has a note if only it says that they are.
    Raises: InputError for weights packed by a method that is not decoded, or an adapter that lies among them.
    """
    tensor = unmerged_tensor(checkpoint.tensors)
    if tensor is not None:
        raise InputError(f"{checkpoint.folder}: {unmerged_sentence(tensor)}")
    found = quantized_weights(config.raw, checkpoint.tensors)
    if found is not None:
        return config, unpack(found, checkpoint, config.raw, dtype=config.float_type)
    said = configured_method(config.raw)
    plain = Unpacked(checkpoint.tensors)
    if said is None:
        return config, plain
    note = (
        f"config.json says that the weights are quantised by {said}, but they are plain floats: they are read as such"
    )
    return replace(config, notes=(*config.notes, note)), plain


def settle_head(config: ModelConfig, unpacked: Unpacked) -> ModelConfig:
    """The config with `tied` as the tensors have it: a head that differs from the embedding is kept."""
    names = (config.family.tensor_name(role, None) for role in (Role.LM_HEAD, Role.EMBED))
    head, embed = (unpacked.tensors.get(name) for name in names)
    if (
        not config.tied
        or config.vectors
        or head is None
        or embed is None
        or embed.shape != (config.vocab_size, config.hidden_size)
    ):
        return config
    if _equal(head, embed):
        return config
    note = "the config ties head and embedding, but 'lm_head.weight' differs: both are kept"
    return replace(config, tied=False, notes=(*config.notes, note))


def bind(config: ModelConfig, unpacked: Unpacked, folder: Path) -> tuple[dict[Slot, TensorView], list[str]]:
    """Matches every slot with a tensor and every tensor with a slot.

    Returns the views by slot, and notes on what was dropped knowingly.
    Raises: InputError listing all missing, misshapen, mistyped and unexpected tensors, and what could not be decoded.
    """
    embed, head = (config.family.tensor_name(role, None) for role in (Role.EMBED, Role.LM_HEAD))
    tensors = dict(unpacked.tensors)
    is_head_only = config.tied and head in tensors and embed not in {*tensors, *unpacked.told}
    if is_head_only:  # of two names for one tensor, a writer kept the other
        tensors[embed] = tensors.pop(head).renamed(embed)
    shelf = Shelf(tensors)
    slots = declare(config)
    layers: dict[int | None, dict[Role, Shape]] = {}
    for slot in slots:
        layers.setdefault(slot.layer, {})[slot.role] = slot.shape
    views = {slot: view for slot in slots if (view := _take(shelf, config, slot, layers[slot.layer])) is not None}
    notes = _drop_redundant(shelf, config)
    if is_head_only:
        notes.append(f"of the tied pair only '{head}' is stored: it is read as the embedding too")
    shelf.misfits.left = shelf.left
    misfits = shelf.misfits.without(unpacked.told)
    misfits.add(unpacked.misfits)
    faults = Faults()
    for sentence in (*unpacked.faults, *misfits.sentences(config, unpacked.tensors)):
        faults.add(sentence)
    faults.raise_if_any(str(folder))
    return views, notes


def _take(shelf: Shelf, config: ModelConfig, slot: Slot, layer: Mapping[Role, Shape]) -> TensorView | None:
    """The weight from the rarest of its places that is there; what is missing is missed in the usual one."""
    prefix, places = config.family.places(slot.role, slot.layer)
    place = next((place for place in reversed(places) if place.is_there(shelf, prefix)), places[0])
    return place.take(shelf, prefix, slot.shape, layer)


def _drop_redundant(shelf: Shelf, config: ModelConfig) -> list[str]:
    """Takes off what the config makes redundant: rotary buffers, and the head when it is tied."""
    notes = []
    for name in [name for name in shelf.left if name.endswith(tuple(config.family.derived))]:
        shelf.taken.add(name)
        notes.append(f"tensor '{name}' is derived from the config and not used")
    head = config.family.tensor_name(Role.LM_HEAD, None)
    if config.tied and head in shelf.left:
        shelf.taken.add(head)
        is_copy = config.vectors is None
        why = "equals the embedding and is not stored twice" if is_copy else "gives logits, and the model gives vectors"
        notes.append(f"tensor '{head}' {why}")
    return notes


def _equal(a: TensorView, b: TensorView) -> bool:
    if a.shape != b.shape:
        return False
    step = max(1, (1 << 20) // a.n_cols)
    return all(
        np.array_equal(a.rows(i, min(i + step, a.n_rows)), b.rows(i, min(i + step, a.n_rows)))
        for i in range(0, a.n_rows, step)
    )
