"""Which graph of a folder or hub repository is meant, and whether its weights are there."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from transformers import AutoConfig

from ....graph.config import CONFIG_FILE
from ....graph.errors import InputError
from ....graph.files import is_file
from ....graph.json_text import read_object
from ....graph.source.config_file import OWN_NAMES, with_own_names
from ....graph.source.hub import HUB_ID, fetch, list_files
from ..genai import preferred
from ..target import TARGET, main_file

# What a graph needs beside itself, at the top of a repository.
_SHARED_FILES = ("*.json", "*.jinja")


def locate(
    model: str | Path,
    *,
    quant: str | None,
    file_name: str | None,
    subfolder: str,
    revision: str | None,
    local_files_only: bool,
    **hub: Any,
) -> tuple[Path, Path]:
    """The folder with the config, and the graph's file in it; of a hub repository one variant is fetched.

    Raises: InputError for a folder without the graph, or a graph without its weights; NetworkError.
    """
    if Path(model).is_dir():
        folder = Path(model)
        inside = (p for place in _places(subfolder) for p in (folder / place).glob("*.onnx"))
        names = [p.relative_to(folder).as_posix() for p in inside]
        name = choose(names, str(model), quant=quant, file_name=file_name, subfolder=subfolder)
    elif HUB_ID.fullmatch(str(model)):
        reach: dict[str, Any] = {"revision": revision, "offline": local_files_only}
        names = list_files(str(model), **reach, token=hub.get("token"), cache_dir=hub.get("cache_dir"))
        name = choose(names, str(model), quant=quant, file_name=file_name, subfolder=subfolder)
        folder = fetch(str(model), [*_SHARED_FILES, name, f"{name}_data*"], **reach, **hub)
    else:
        raise InputError(f"{model}: no such folder, and not a hub id like org/model-ONNX")
    if not (folder / CONFIG_FILE).is_file():
        raise InputError(f"{folder}: has no {CONFIG_FILE}")
    return folder, folder / name


def own_config(folder: Path) -> Any:
    """The config of the model's own class, where the folder's has the names of one that Transformers.js knows."""
    values = read_object(folder / CONFIG_FILE)
    if OWN_NAMES not in values:
        return AutoConfig.from_pretrained(folder)
    return AutoConfig.for_model(**with_own_names(values))


def choose(
    names: Iterable[str], where: str, *, quant: str | None = None, file_name: str | None = None, subfolder: str = ""
) -> str:
    """The path of a graph among files of a repository; by default the CPU's best variant.

    Graphs lie in `onnx/`, or at the top; `subfolder` names another place.
    Raises: InputError with the variants there are; UsageError for a quant that the target does not know.
    """
    graphs: dict[str, str] = {}
    for place in reversed(_places(subfolder)):
        inside = (PurePosixPath(n) for n in names if PurePosixPath(n).parent == PurePosixPath(place))
        graphs |= {path.name: path.as_posix() for path in inside if path.suffix == ".onnx"}
    if not graphs:
        raise InputError(f"{where}: holds no ONNX graph; lfm-convert MODEL --target onnx --out FOLDER writes one")
    known = {policy.name: PurePosixPath(main_file(policy.name)).name for policy in TARGET.policies}
    here = [name for name, file in known.items() if file in graphs]
    if file_name is None and quant is None:
        if not here:
            raise InputError(
                f"{where}: no graph has a name of ours; file_name= takes one of {', '.join(sorted(graphs))}"
            )
        quant = preferred(here)
    wanted = file_name or known[TARGET.policy(str(quant)).name]
    if wanted not in graphs:
        asked = wanted if file_name else f"{quant}, {wanted}"
        raise InputError(f"{where}: has no {asked}; there is {', '.join(sorted(graphs) if file_name else here)}")
    return graphs[wanted]


def _places(subfolder: str) -> tuple[str, ...]:
    """Folders where graphs may lie, the likeliest first."""
    return (subfolder,) if subfolder else ("onnx", ".")


def data_files(graph: Path) -> list[Path]:
    """The files that hold a graph's weights.

    Raises: InputError for a graph that cannot be read, or whose weights are missing or cut short.
    """
    try:
        initializers = onnx.load(graph, load_external_data=False).graph.initializer
    except Exception as error:  # protobuf raises its own kinds
        raise InputError(f"{graph}: cannot be read as ONNX: {error}") from None
    found = []
    for name, nbytes in _ends(initializers).items():
        path = graph.parent / name
        if not is_file(path):
            raise InputError(f"{path}: is missing; {graph.name} keeps weights there")
        if path.stat().st_size < nbytes:
            raise InputError(f"{path}: has {path.stat().st_size} bytes: expected {nbytes}")
        found.append(path)
    return found


def _ends(initializers: Sequence[Any]) -> dict[str, int]:
    """Where the weights in each data file end, in bytes."""
    ends: dict[str, int] = {}
    for tensor in initializers:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            place = {entry.key: entry.value for entry in tensor.external_data}
            end = int(place.get("offset", 0)) + int(place.get("length", 0))
            ends[place["location"]] = max(end, ends.get(place["location"], 0))
    return ends
