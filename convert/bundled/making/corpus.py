"""The text that the bundled models are trained on and measured with, the same for the same seed and CPython.

| kind      | what                                            | licence                     |
|-----------|-------------------------------------------------|-----------------------------|
| dialogues | drawn from the templates of `dialogues.py`      | Apache-2.0, of this project |
| prose     | CPython's own help text, `pydoc_data.topics`    | PSF-2.0                     |
| code      | source of the CPython modules named below       | PSF-2.0                     |

Prose and code are read from the running interpreter; the shipped checkpoints were made with CPython 3.11.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re
from dataclasses import dataclass
from pathlib import Path
from random import Random

from .dialogues import Dialogue, draw

TRAIN_MODULES = (
    "bisect", "calendar", "cmd", "colorsys", "configparser", "contextlib", "copy", "dataclasses", "difflib", "enum",
    "fileinput", "fnmatch", "fractions", "functools", "getopt", "glob", "gzip", "heapq", "html.parser", "json.decoder",
    "json.encoder", "linecache", "numbers", "operator", "pathlib", "pprint", "queue", "random", "reprlib", "sched",
    "shelve", "shutil", "statistics", "string", "tempfile", "threading", "timeit", "tokenize", "types", "wave",
)  # fmt: skip
HELD_OUT_MODULES = ("csv", "shlex", "textwrap")
# One dialogue or help topic in this many is held out.
_HELD_OUT_EVERY = 20


@dataclass(frozen=True, kw_only=True)
class Texts:
    """One split: whole documents, by kind."""

    dialogues: tuple[Dialogue, ...]
    prose: tuple[str, ...]
    code: tuple[str, ...]


def build(*, seed: int, n_dialogues: int = 16_000) -> tuple[Texts, Texts]:
    """Return (train, held_out), which share no dialogue, no paragraph of prose and no module.

    Raises:
        ValueError: a named module has no readable source in this interpreter.
    """
    dialogues = _dialogues(seed=seed, n_dialogues=n_dialogues)
    prose, held_out_prose = _topics()
    train = Texts(
        dialogues=tuple(each for each in dialogues if not _is_held_out(_key(each))),
        prose=prose,
        code=tuple(_source(name) for name in TRAIN_MODULES),
    )
    held_out = Texts(
        dialogues=tuple(each for each in dialogues if _is_held_out(_key(each))),
        prose=held_out_prose,
        code=tuple(_source(name) for name in HELD_OUT_MODULES),
    )
    return train, held_out


def _dialogues(*, seed: int, n_dialogues: int) -> list[Dialogue]:
    """Draw `n_dialogues` and keep the first of equal ones, so that no held-out dialogue was trained on."""
    rng = Random(seed)
    drawn = (draw(rng) for _ in range(n_dialogues))
    return list({_key(each): each for each in drawn}.values())


def _key(dialogue: Dialogue) -> str:
    return json.dumps([dialogue.messages, dialogue.tools])


def _is_held_out(key: str) -> bool:
    """Choose by content, so that a document keeps its side when others come or go."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:4], "big") % _HELD_OUT_EVERY == 0


def _topics() -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the help topics for training and those held out.

    Some topics are chapters of others, so a held-out topic that shares a paragraph with training is left out.
    """
    from pydoc_data.topics import topics

    train = tuple(text for name, text in sorted(topics.items()) if not _is_held_out(name))
    seen = {paragraph for text in train for paragraph in _paragraphs(text)}
    held_out = (text for name, text in sorted(topics.items()) if _is_held_out(name))
    return train, tuple(text for text in held_out if seen.isdisjoint(_paragraphs(text)))


def _paragraphs(text: str) -> set[str]:
    return {" ".join(paragraph.split()) for paragraph in re.split(r"\n\s*\n", text.strip())}


def _source(module: str) -> str:
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None or not spec.origin.endswith(".py"):
        raise ValueError(f"The corpus needs the source of {module!r}, and this interpreter has none on disk.")
    return Path(spec.origin).read_text(encoding="utf-8")
