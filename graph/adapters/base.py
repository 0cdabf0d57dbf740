"""Whether an adapter was trained on the model it is to be merged into, as far as names tell."""

from __future__ import annotations

import re
from pathlib import Path

from ..config import CONFIG_FILE
from ..errors import InputError
from ..graph import WeightGraph
from ..source.config_file import load_config
from ..source.hub import HUB_ID, snapshot_of

# What repositories of one model in another encoding add to its name: adapters are often trained on such.
_ENCODED = re.compile(r"(-(unsloth|bnb|dynamic|[48]bit|int[48]|fp8|bf16|awq|gptq|mlx))+$", re.IGNORECASE)


def other_base(graph: WeightGraph, declared: str | None) -> tuple[str | None, str | None]:
    """A fault where the base that an adapter names is another model, else a note where names cannot tell.

    A folder that is there is held to the model's blocks. Of two repositories the names count, without their owners.
    """
    if not declared:
        return None, "it does not say which model it was trained on: only names and shapes of tensors were compared"
    folder, snapshot = Path(declared).expanduser(), snapshot_of(graph.folder)
    repository = snapshot[0] if snapshot else None
    unclear = (
        f"it was trained on {declared}; whether {repository or graph.folder} is that model, names cannot tell: only "
        "names and shapes of tensors were compared"
    )
    if _is_model(folder):
        if folder.resolve() == graph.folder.resolve():
            return None, None
        return (
            (f"was trained on {folder}, which is another model", None) if _differs(graph, folder) else (None, unclear)
        )
    if repository is None or not HUB_ID.fullmatch(declared):
        return None, None if _stem(declared) == _stem(repository or str(graph.folder.resolve())) else unclear
    if _stem(declared) != _stem(repository):
        return f"was trained on {declared}, and the model is {repository}", None
    is_same = declared.partition("/")[0].lower() == repository.partition("/")[0].lower()
    return None, None if is_same else unclear


def _is_model(folder: Path) -> bool:
    try:
        return folder.is_absolute() and (folder / CONFIG_FILE).is_file()
    except OSError:  # a name that no file can have
        return False


def _differs(graph: WeightGraph, folder: Path) -> bool:
    """Whether the model of a folder is of other blocks; one that cannot be read is not known to be."""
    try:
        found = load_config(folder)
    except InputError:
        return False
    return (found.layers, found.hidden_size) != (graph.config.layers, graph.config.hidden_size)


def _stem(name: str) -> str:
    """The last part of a name, without what says how the model is encoded."""
    last = re.split(r"[/\\]", name.rstrip("/\\"))[-1]
    return _ENCODED.sub("", last).lower()
