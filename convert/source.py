"""Finds the model a command speaks of: a folder, a GGUF file, a URL, a hub repository, or a bundled one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..graph.adapters.adapter import AS_IT_IS, Adapting
from ..graph.config import CONFIG_FILE
from ..graph.errors import InputError, UsageError
from ..graph.progress import SILENT, Progress
from ..graph.source.fetching import fetch_url
from ..graph.source.hub import HUB_ID, fetch, list_files
from ..graph.source.urls import is_url
from ..graph.source.weight_files import found_instead
from ..quantize.gguf_file.reader import is_gguf
from . import bundled
from .recipe.reading import load_recipe

SETTINGS_FILE = "lfm-convert.toml"
# Weights as safetensors only: pickles are never fetched.
_HUB_FILES = (
    "*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "tokenizer.model", "LICENSE*", "README.md",
)  # fmt: skip


@dataclass(frozen=True)
class Source:
    """A local folder or file, the model's name, and how it was found, where that was not said; then also its adapters."""

    path: Path
    name: str | None = None
    note: str | None = None
    adapters: Adapting = AS_IT_IS


def find_model(
    model: str | None,
    *,
    revision: str | None = None,
    offline: bool = False,
    token: str | None = None,
    progress: Progress = SILENT,
) -> Source:
    """The folder or file of `model`; without one: the settings file's, the current folder, or the bundled MoE.

    `token` is the hub's, where it is another than the one that huggingface_hub finds by itself.
    Raises: InputError, UsageError or NetworkError with what was looked for and where.
    """
    if model is None:
        return _default_model(revision=revision, offline=offline)
    if not model:
        raise UsageError(f"the model's name is empty: expected a folder, a hub id, or {bundled.CHOICES}")
    if is_url(model):
        _refuse_revision(f"{model} is a URL, and says itself which one it is", revision)
        return Source(fetch_url(model, _HUB_FILES, offline=offline, token=token, progress=progress))
    folder = Path(model).expanduser()
    if folder.is_dir():
        _refuse_revision(f"{folder} is a local folder, which has none", revision)
        return Source(folder)
    if folder.is_file():
        if not is_gguf(folder):
            raise InputError(_of_a_file(folder))
        _refuse_revision(f"{folder} is a local file, which has none", revision)
        return Source(folder)
    if model.startswith("bundled:"):
        _refuse_revision(f"{model} is a bundled model, which has none", revision)
        return _bundled(model.removeprefix("bundled:"))
    if HUB_ID.fullmatch(model):
        return _from_hub(model, revision=revision, offline=offline, token=token)
    raise InputError(f"{model}: no such folder, and not a hub id like org/model")


def nearby_model(*, revision: str | None, offline: bool) -> Source | None:
    """The settings file's model, or the checkpoint in the current folder; None if there is neither."""
    settings = Path(SETTINGS_FILE)
    recipe = load_recipe(settings) if settings.is_file() else None
    models = list(recipe.models.values()) if recipe else []
    if recipe and len(models) == 1:  # of several none is the one that is meant
        found = find_model(models[0].model, revision=revision or models[0].revision, offline=offline)
        note = f"using model '{models[0].model}' of {SETTINGS_FILE}"
        return Source(found.path, found.name, note, recipe.adapting(models[0]))
    _refuse_revision("no hub id is given for it", revision)
    if Path(CONFIG_FILE).is_file():
        return Source(Path(), note="using the checkpoint in the current folder")
    return None


def _default_model(*, revision: str | None, offline: bool) -> Source:
    nearby = nearby_model(revision=revision, offline=offline)
    if nearby is not None:
        return nearby
    found = _bundled("moe")
    return Source(found.path, found.name, f"no MODEL given and no checkpoint here: using the bundled {found.name}")


def _refuse_revision(why: str, revision: str | None) -> None:
    """Raises UsageError for a revision of what has none: another version than asked for must not pass for it."""
    if revision is not None:
        raise UsageError(f"--revision {revision}: {why}; give --revision with a hub id only")


def _of_a_file(path: Path) -> str:
    """What a file given as the model is, and what to name in its place."""
    words = found_instead([path.name])
    if words is None and path.name.endswith((".safetensors", ".safetensors.index.json", CONFIG_FILE)):
        return (
            f"{path}: is a file; name the folder that holds config.json and the safetensors: {path.absolute().parent}"
        )
    what = f" ({words.partition(': ')[2]})" if words else ""
    return f"{path}: is a file{what}; name the folder that holds config.json and the safetensors"


def _bundled(name: str) -> Source:
    try:
        return Source(bundled.path(name), bundled.NAMES[name])
    except ValueError as error:
        raise UsageError(str(error)) from None


def _from_hub(repo: str, *, revision: str | None, offline: bool, token: str | None) -> Source:
    """The snapshot of a repository. One without a config is named by the files that were not fetched.

    Raises: NetworkError as `fetch`; InputError for a repository of artifacts.
    """
    folder = fetch(repo, _HUB_FILES, revision=revision, offline=offline, token=token)
    if not (folder / CONFIG_FILE).is_file() and not any(folder.glob("*.safetensors")):
        found = found_instead(list_files(repo, revision=revision, offline=offline, token=token))
        if found is not None:
            raise InputError(f"{repo}: holds no checkpoint (found {found})")
    return Source(folder, repo.rpartition("/")[2])
