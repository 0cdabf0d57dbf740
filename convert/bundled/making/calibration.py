"""The part of the calibration text that is drawn: small dialogues in the languages of the bundled models.

    python -m lfm_convert.convert.bundled.making.calibration

Replaces the drawn lines of `convert/calibration.jsonl`; the others were written for it. No dialogue that the bundled
models were trained on, or are measured with, is among them, and none that says what a prompt of the validator says.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

from ....validate.prompts import load_prompts
from ...calibration import DEFAULT_TEXT
from .corpus import build
from .dialogues import Dialogue, draw

_PATH = Path(__file__).parents[2] / DEFAULT_TEXT
_PREFIX = "drawn-"
_N_DRAWN = 80
_SEED = 20_261
_RUN = 20  # characters, without spaces, that are the same by no accident


def drawn() -> Iterator[Dialogue]:
    """Dialogues of several exchanges, none of them in the corpus of the shipped models."""
    train, held_out = build(seed=0)
    known = {_key(each) for each in (*train.dialogues, *held_out.dialogues)}
    prompts = {
        run
        for prompt in load_prompts()
        for text in (prompt.text or "", *_contents(prompt.messages))
        for run in _runs(text)
    }
    rng = Random(_SEED)
    n_found = 0
    while n_found < _N_DRAWN:
        dialogue = draw(rng)
        said = {run for text in _contents(dialogue.messages) for run in _runs(text)}
        if len(dialogue.messages) > 3 and _key(dialogue) not in known and not said & prompts:
            known.add(_key(dialogue))
            n_found += 1
            yield dialogue


def main() -> None:
    lines = [
        each
        for each in _PATH.read_text(encoding="utf-8").splitlines()
        if not json.loads(each)["id"].startswith(_PREFIX)
    ]
    for number, dialogue in enumerate(drawn()):
        row = {"id": f"{_PREFIX}{number:02}", "kind": "chat", "messages": dialogue.messages}
        if dialogue.tools:
            row["tools"] = dialogue.tools
        lines.append(json.dumps(row, ensure_ascii=False))
    _PATH.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _contents(messages: Sequence[Mapping[str, Any]]) -> list[str]:
    return [str(message.get("content") or "") for message in messages]


def _runs(text: str) -> set[str]:
    characters = "".join(text.split())
    return {characters[i : i + _RUN] for i in range(len(characters) - _RUN + 1)}


def _key(dialogue: Dialogue) -> str:
    return json.dumps([dialogue.messages, dialogue.tools])


if __name__ == "__main__":
    main()
