"""Tensor names as training tools leave them, brought back to those of the model.

torch.compile, data-parallel wrappers, PEFT and Lightning put a component before every name, or between two; a model
saved without its head has names without `model.`. The values are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from ..families import FAMILIES

# Components that wrap a module, wherever in a name they stand.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# What stands before all names of a model, or before none.
_PREFIXES = ("base_model.model.", "module.")
_BASE = "model."
# How the one name starts that never has `model.`.
_HEAD = "lm_head."


def model_names(stored: Iterable[str]) -> dict[str, str]:
    """Stored name to the model's name, in the same order; equal where there is nothing to strip.

    A prefix is stripped if every name has it. What fits no rule stays as it is.
    """
    names = {name: ".".join(part for part in name.split(".") if part not in _WRAPPERS) for name in stored}
    while (prefix := _common_prefix(names)) is not None:
        names = {name: found.removeprefix(prefix) for name, found in names.items()}
    if _is_bare(names):
        names = {name: found if found.startswith(_HEAD) else _BASE + found for name, found in names.items()}
    return names


def naming_note(names: Mapping[str, str]) -> str | None:
    """What was done to the names, by the first that changed; None if none did."""
    changed = [(stored, name) for stored, name in names.items() if stored != name]
    if not changed:
        return None
    stored, name = changed[0]
    return f"{len(changed)} tensors are read under other names than the file has: '{stored}' as '{name}'"


def _common_prefix(names: Mapping[str, str]) -> str | None:
    if not names:
        return None
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in names.values()):
            return prefix
    # A wrapper that calls the whole model `model`: its layers are `model.model.layers`, its head `model.lm_head`.
    wrapped = all(name.startswith(_BASE) for name in names.values())
    inner = any(name.startswith(_BASE + start) for name in names.values() for start in (_BASE, _HEAD))
    return _BASE if wrapped and inner else None


def _is_bare(names: Mapping[str, str]) -> bool:
    """Whether all names but the head's lack `model.`."""
    rest = [name for name in names.values() if not name.startswith(_HEAD)]
    return bool(rest) and all(name.startswith(_bare_starts()) for name in rest)


@cache
def _bare_starts() -> tuple[str, ...]:
    """How the names of a model without its head start, whatever its family."""
    top = [place.name for family in FAMILIES for places in family.top_places.values() for place in places]
    names = [*top, *(family.layer_prefix for family in FAMILIES)]
    return tuple({name.removeprefix(_BASE).split(".")[0] + "." for name in names if name.startswith(_BASE)})
