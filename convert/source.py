"""Finds the model a command speaks of: a folder, a hub repository, or the bundled one."""

from __future__ import annotations

import os
import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

from . import bundled
from .errors import InputError, NetworkError, UsageError
from .model.config import CONFIG_FILE

SETTINGS_FILE = "lfm-convert.toml"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
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
    if _HUB_ID.fullmatch(model):
        return _from_hub(model, revision=revision, offline=offline)
    raise InputError(f"{model}: no such folder, and not a hub id like LiquidAI/LFM2-350M")


def _default_model(*, revision: str | None, offline: bool) -> Source:
    settings = Path(SETTINGS_FILE)
    if settings.is_file():
        model = _read_settings(settings)
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


def _read_settings(path: Path) -> str:
    try:
        settings = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read as TOML: {error}") from None
    unknown = sorted(set(settings) - {"model"})
    if unknown or not isinstance(settings.get("model"), str):
        raise InputError(
            f'{path}: expected one key, model = "FOLDER or hub id"' + (f"; found '{unknown[0]}'" if unknown else "")
        )
    return str(settings["model"])


def _from_hub(repo: str, *, revision: str | None, offline: bool) -> Source:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    offline = offline or os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on")
    try:
        folder = snapshot_download(repo, revision=revision, allow_patterns=list(_HUB_FILES), local_files_only=offline)
    except LocalEntryNotFoundError:
        reason = (
            "it is not in the local cache" if offline else "the hub cannot be reached and it is not in the local cache"
        )
        raise NetworkError(f"{repo}: {reason}; fetch it with 'hf download {repo}' or name a local folder") from None
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = f"revision {revision}" if isinstance(error, RevisionNotFoundError) else "repository"
        raise NetworkError(f"{repo}: the hub has no such {what}, or it needs 'hf auth login'") from None
    except (HfHubHTTPError, OSError) as error:
        raise NetworkError(f"{repo}: download failed: {error}") from None
    return Source(Path(folder), repo.rpartition("/")[2])
