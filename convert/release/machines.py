"""What machines that work for one release must have in common, and each must reach, for its files to be the same."""

from __future__ import annotations

import os
import platform
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..._version import __version__
from ...graph.errors import BackendError, LfmConvertError, UsageError
from ...graph.packages import versions
from ...graph.source.urls import is_url, open_url, told
from .parts import pull, push
from .prepared import Preparation

_SHOWN = 4  # packages that a sentence names


def own_facts() -> dict[str, str]:
    """Versions of this tool and of all that decides bytes and results, and the kind of machine."""
    kind = f"{platform.system()} {platform.machine()}"
    return {"lfm-convert": __version__, "Python": platform.python_version(), "kind of machine": kind, **versions()}


def demands_of(preparation: Preparation, probe: tuple[str, str]) -> dict[str, Any]:
    """What a machine is asked for: models and adapters that it must see, and the output that it must read and write."""
    models = [each.wanted.model for each in preparation.artifacts]
    recipe = preparation.recipe
    seen = {each.model: recipe.seen(Path(each.model)).absolute() for each in models}
    folders = [path for path in seen.values() if path.is_dir()]
    folders += [path.absolute() for each in models for path in recipe.adapting(each).folders]
    return {
        "folders": sorted({str(path) for path in folders}),
        "urls": sorted({model for model in seen if is_url(model)}),
        "tokens": sorted({each.token for each in models if each.token}),
        "store": preparation.output.store.url,
        "probe": list(probe),
    }


def look(demands: Mapping[str, Any]) -> dict[str, Any]:
    """Facts of this machine, and what it misses of the demands: a sentence and an exit code for each."""
    missing: list[tuple[int, str]] = []
    for folder in demands["folders"]:
        if not Path(folder).is_dir():
            sentence = f"{folder}: there is no such folder: name a URL or a hub id, or a folder that all machines share"
            missing.append((int(UsageError.exit_code), sentence))
    missing += [
        (int(UsageError.exit_code), f"the environment has no {name}, which holds the hub's token")
        for name in demands["tokens"]
        if not os.environ.get(name)
    ]
    try:
        for url in demands["urls"]:
            remote = open_url(url)
            with told(url):
                remote.fs.ls(remote.path, detail=False)
        _try_store(demands["store"], *demands["probe"])
    except LfmConvertError as error:
        missing.append((int(error.exit_code), str(error)))
    return {"facts": own_facts(), "missing": missing}


def _try_store(url: str, place: str, sha256: str) -> None:
    """Reads the probe and writes another one beside. Raises: as `pull` and `push`."""
    store = open_url(url)
    with TemporaryDirectory() as folder:
        pull(store / place, Path(folder) / "probe", sha256)
        again = store / f"{place}-{secrets.token_hex(4)}"
        push(Path(folder) / "probe", again)
    with told(url):
        again.fs.rm_file(again.path)


def refuse_others(found: Mapping[str, Mapping[str, Any]], own: Mapping[str, str]) -> None:
    """Raises BackendError for workers, by their address, in another environment than this one."""
    for address, answer in sorted(found.items()):
        facts: Mapping[str, str] = answer["facts"]
        names = [name for name in sorted({*facts, *own}) if facts.get(name) != own.get(name)]
        if names:
            raise BackendError(
                f"worker {address}{_others(found, own, address)}: {_differences(names, facts, own)}: bytes and results "
                "depend on them: install on all machines what is installed here"
            )


def refuse_missing(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises what the first worker misses, in its own words and with its exit code."""
    for address, answer in sorted(found.items()):
        for code, sentence in answer["missing"]:
            raise _KINDS.get(code, UsageError)(f"worker {address}: {sentence}")


_KINDS: Mapping[int, type[LfmConvertError]] = {int(kind.exit_code): kind for kind in LfmConvertError.__subclasses__()}


def _differences(names: Sequence[str], facts: Mapping[str, str], own: Mapping[str, str]) -> str:
    shown = [f"has {name} {facts.get(name, 'not')}, here {own.get(name, 'not')}" for name in names[:_SHOWN]]
    more = f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(shown) + more


def _others(found: Mapping[str, Mapping[str, Any]], own: Mapping[str, str], address: str) -> str:
    n = sum(answer["facts"] != dict(own) for other, answer in found.items() if other != address)
    return f" and {n} more" if n else ""
