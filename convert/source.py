"""Finds the model a command speaks of: a folder, a hub repository, or the bundled one."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path

from . import bundled
from .errors import InputError, UsageError
from .hub import HUB_ID, fetch
from .model.config import CONFIG_FILE

SETTINGS_FILE = "lfm-convert.toml"
# Weights as safetensors only: pickles are never fetched.
_HUB_FILES = ("*.safetensors", "*.safetensors.index.json", "*.json", "*.jinja", "LICENSE*", "README.md")


@dataclass(frozen=True)
class Source:
    """A local folder, the model's name, and how it was found, where that was not said."""

    folder: Path
    name: str | None = None
    note: str | None = None


def find_model(model: str | None, *, revision: str | None = None, offline: bool = False) -> Source:
    """The folder of `model`; without one: the settings file's, the current folder, or the bundled MoE.

    Raises: InputError, UsageError or NetworkError with what was looked for and where.
    """
    if model is None:
        return _default_model(revision=revision, offline=offline)
    folder = Path(model).expanduser()
    if folder.is_dir():
        return Source(folder)
    if folder.is_file():
        raise InputError(f"{folder}: is a file; name the folder that holds config.json and the safetensors")
    if model.startswith("bundled:"):
        return _bundled(model.removeprefix("bundled:"))
    if HUB_ID.fullmatch(model):
        return _from_hub(model, revision=revision, offline=offline)
    raise InputError(f"{model}: no such folder, and not a hub id like LiquidAI/LFM2-350M")


def _default_model(*, revision: str | None, offline: bool) -> Source:
    settings = Path(SETTINGS_FILE)
    if settings.is_file():
        model = _read_settings(settings)
        if model is not None:
            found = find_model(model, revision=revision, offline=offline)
            return Source(found.folder, found.name, f"using model '{model}' of {SETTINGS_FILE}")
    if Path(CONFIG_FILE).is_file():
        return Source(Path(), note="using the checkpoint in the current folder")
    found = _bundled("moe")
    return Source(found.folder, found.name, f"no MODEL given and no checkpoint here: using the bundled {found.name}")


def _bundled(name: str) -> Source:
    try:
        return Source(bundled.path(name), bundled.NAMES[name])
    except ValueError as error:
        raise UsageError(str(error)) from None


def _read_settings(path: Path) -> str | None:
    """The model that the settings name, if they do; their device classes are read by who asks for one."""
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    unknown = sorted(set(settings) - {"model", "devices"})
    model = settings.get("model")
    if unknown or not settings or not isinstance(model, str | None):
        found = f"; found '{unknown[0]}'" if unknown else ""
        raise InputError(f'{path}: expected model = "FOLDER or hub id", or tables [devices.NAME]{found}')
    return model


def _from_hub(repo: str, *, revision: str | None, offline: bool) -> Source:
    return Source(fetch(repo, _HUB_FILES, revision=revision, offline=offline), repo.rpartition("/")[2])
