"""Adapters: folders, and tensors, that change a base model and are none by themselves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..json_text import parse_json

ADAPTER_CONFIG = "adapter_config.json"
# File names of PEFT and of mlx-lm.
_WEIGHTS = ("adapter_model*", "adapters.safetensors", "*_adapters.safetensors", "adapters.npz")
_MERGE = "merge it into its base first, such as by merge_and_unload() of PEFT, and convert what that saves"
# What can be merged here.
_TAKEN = ("LORA",)
# Components of a name that PEFT puts beside the base model's own tensors.
_COMPONENTS = frozenset({
    "base_layer", "lora_A", "lora_B", "lora_a", "lora_b", "lora_embedding_A", "lora_embedding_B",
    "lora_magnitude_vector", "modules_to_save", "original_module",
})  # fmt: skip


def is_adapter_file(path: Path) -> bool:
    """Whether a weight file is an adapter's, by its name."""
    return any(path.match(pattern) for pattern in _WEIGHTS)


def adapter_sentence(folder: Path) -> str | None:
    """What the adapter of a folder is, and what to do with it; None if there is none."""
    if not _has_adapter(folder):
        return None
    found = _read(folder / ADAPTER_CONFIG)
    kind = found.get("peft_type") or found.get("fine_tune_type") or "LoRA"
    base = found.get("base_model_name_or_path") or found.get("model")
    of = f" of {base}" if isinstance(base, str) and base.isprintable() else ""
    name = str(kind).replace("LORA", "LoRA").replace("lora", "LoRA") if str(kind).isprintable() else "LoRA"
    remedy = f"name its base as the model, and it with --adapter {folder}" if kind in _TAKEN else _MERGE
    return f"is {_article(name)} {name} adapter{of}: {remedy}"


def adapter_note(folder: Path, applied: Iterable[Path] = ()) -> str | None:
    """Says of an adapter beside a checkpoint, or in a folder of it, that it is not part of the conversion, unless it is
    one of those that will be merged.
    """
    taken = {path.resolve() for path in applied}
    beside = [folder, *sorted(path.parent for path in folder.glob(f"*/{ADAPTER_CONFIG}"))]
    homes = [home for home in beside if _has_adapter(home) and home.resolve() not in taken]
    if not homes:
        return None
    where = "beside the checkpoint" if homes[0] == folder else f"in {homes[0].name}/"
    return f"the adapter {where} is not applied: to have it in the artifact, name it with --adapter {homes[0]}"


def unmerged_tensor(names: Iterable[str]) -> str | None:
    """The first tensor that belongs to an adapter which was not merged."""
    return next((name for name in names if not _COMPONENTS.isdisjoint(name.split("."))), None)


def unmerged_sentence(tensor: str) -> str:
    return f"holds an adapter that is not merged (tensor '{tensor}'): {_MERGE}"


def _has_adapter(folder: Path) -> bool:
    return (folder / ADAPTER_CONFIG).is_file() or any(any(folder.glob(pattern)) for pattern in _WEIGHTS)


def _read(path: Path) -> dict[str, Any]:
    """The adapter's own config, of which nothing is needed: what cannot be read is as good as absent."""
    try:
        found = parse_json(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _article(word: str) -> str:
    return "an" if word[:1].upper() in "AEIO" else "a"
