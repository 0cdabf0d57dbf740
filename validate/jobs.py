"""What the validator asks of a worker process, and what the worker answers, as files of one folder.

`job.json` goes in; logits appear prompt by prompt (`stored_logits.py`); `outcome.json` ends it.
Files survive whatever a runtime does to its process and to its standard output.
"""

from __future__ import annotations

import enum
import importlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from ..targets.target import Artifact, Target
from .metrics import json_safe
from .probes import CacheCheck, Probe
from .prompts import Chat
from .steps import Step

# Where a worker finds targets by name, as "module:function"; plug-ins and tests have their own.
FIND_TARGET = "lfm_convert.targets.target:get_target"

_JOB = "job.json"
_STEP = "step.json"
_OUTCOME = "outcome.json"
_PATHS = ("path", "folder")


@dataclass(frozen=True, kw_only=True)
class Job:
    """One artifact to run. `cache_prompts`, `greedy_prompts` and `expert_prompts` are indices into `prompts`; `texts`
    are for its tokenizer, `chats` for its template, which knows the `special_tokens` by name, and of whose texts `opening`
    comes off, with which the tokenizer begins by itself. `end_prompt` is a prompt
    and a number of tokens: it is run to its end, or for so many, by the artifact's own stop ids, the greedy ones by
    `stop`, the checkpoint's. Rows have `n_outputs` numbers: logits, or vectors of a model that
    `gives_vectors`, which has a row for every token only if it `is_per_token`.
    """

    artifact: Artifact
    find_target: str
    threads: int
    n_outputs: int
    prompts: tuple[tuple[int, ...], ...]
    cache_prompts: tuple[int, ...]
    greedy_prompts: tuple[int, ...]
    n_greedy: int
    stop: tuple[int, ...]
    texts: tuple[str, ...] = ()
    chats: tuple[Chat, ...] = ()
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    opening: str = ""
    expert_prompts: tuple[int, ...] = ()
    end_prompt: tuple[int, int] | None = None
    gives_vectors: bool = False
    is_per_token: bool = True

    def save(self, folder: Path) -> None:
        artifact = _fields(self.artifact)
        artifact |= {key: str(artifact[key]) for key in _PATHS}
        artifact |= {"files": list(map(str, self.artifact.files)), "entry": dict(self.artifact.entry)}
        chats = [_fields(chat) for chat in self.chats]
        data = {**_fields(self), "artifact": artifact, "chats": chats}
        (folder / _JOB).write_text(json.dumps(data), encoding="utf-8")


def _fields(item: Job | Artifact | Chat) -> dict[str, Any]:
    return {each.name: getattr(item, each.name) for each in fields(item)}


def load_job(folder: Path) -> Job:
    """The job of a folder; written by us, so it is not checked."""
    data = json.loads((folder / _JOB).read_text(encoding="utf-8"))
    artifact = data["artifact"]
    artifact |= {key: Path(artifact[key]) for key in _PATHS}
    artifact["files"] = tuple(map(Path, artifact["files"]))
    data["prompts"] = tuple(map(tuple, data["prompts"]))
    for key in ("cache_prompts", "greedy_prompts", "expert_prompts", "stop", "texts"):
        data[key] = tuple(data[key])
    data["end_prompt"] = None if data["end_prompt"] is None else tuple(data["end_prompt"])
    data["chats"] = tuple(Chat(tuple(chat["messages"]), tuple(chat["tools"])) for chat in data["chats"])
    return Job(**{**data, "artifact": Artifact(**artifact)})


def resolve_target(find_target: str, name: str) -> Target:
    """The target of that name, by a `module:function` such as `FIND_TARGET`."""
    module, function = find_target.split(":")
    found: Target = getattr(importlib.import_module(module), function)(name)
    return found


def save_step(folder: Path, step: Step) -> None:
    """Leaves word of what a worker does now."""
    path = folder / _STEP
    path.with_suffix(".part").write_text(json.dumps(asdict(step)), encoding="utf-8")
    path.with_suffix(".part").replace(path)


def load_step(folder: Path) -> Step | None:
    """What a worker does now; None before it said."""
    try:
        return Step(**json.loads((folder / _STEP).read_bytes()))
    except OSError:
        return None


class Status(enum.StrEnum):
    """How a worker ended. `DISK` is a full temporary folder, which says nothing of the artifact; `LATE` and `TOO_LARGE`
    were ended by us.
    """

    DONE = "done"
    SKIPPED = "skipped"
    FAILED = "failed"
    LATE = "late"
    TOO_LARGE = "too large"
    DISK = "disk"


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """A worker's answer beside the logits.

    `greedy` holds the tokens of each greedy prompt, `encoded` the ids of each of the job's texts, `rendered` its chats
    as text without BOS; None if the artifact takes ids only. `experts` is [n, top_k] by layer, of the expert prompts
    laid end to end; None if the runtime does not show them. `stops` are the ids at which each of the artifact's readers
    ends a text, `end` the tokens of the prompt that was run to its end by them. `held_bytes` is the most memory that the
    worker and its children held beside the files they map, which who watches it adds; None if nobody could look.
    """

    status: Status
    message: str = ""
    backend: str = ""
    cache: CacheCheck | None = None
    greedy: tuple[tuple[int, ...], ...] = ()
    encoded: tuple[tuple[int, ...], ...] | None = None
    rendered: tuple[str, ...] | None = None
    experts: Mapping[int, Sequence[Sequence[int]]] | None = None
    stops: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    end: tuple[int, ...] | None = None
    held_bytes: int | None = None

    def save(self, folder: Path) -> None:
        path = folder / _OUTCOME
        path.with_suffix(".part").write_text(json.dumps(json_safe(asdict(self))), encoding="utf-8")
        path.with_suffix(".part").replace(path)


def load_outcome(folder: Path) -> Outcome | None:
    """The outcome of a folder, or None if the worker never wrote one."""
    path = folder / _OUTCOME
    if not path.exists():
        return None
    data: dict[str, Any] = json.loads(path.read_bytes())
    cache = data["cache"]
    if cache is not None:
        cache = CacheCheck(tuple(map(_probe, cache["probes"])), tuple(cache["not_seen"]))
    greedy = tuple(map(tuple, data["greedy"]))
    encoded = None if data["encoded"] is None else tuple(map(tuple, data["encoded"]))
    rendered = None if data["rendered"] is None else tuple(data["rendered"])
    experts = None if data["experts"] is None else {int(layer): rows for layer, rows in data["experts"].items()}
    found = {"cache": cache, "greedy": greedy, "encoded": encoded, "rendered": rendered, "experts": experts}
    found["stops"] = {reader: tuple(ids) for reader, ids in data["stops"].items()}
    found["end"] = None if data["end"] is None else tuple(data["end"])
    return Outcome(**{**data, "status": Status(data["status"]), **found})


def _probe(row: Mapping[str, Any]) -> Probe:
    """A probe as it was written, null meaning NaN."""
    found: dict[str, Any] = {key: np.nan if value is None else value for key, value in row.items()}
    return Probe(**found)
