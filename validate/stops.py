"""Whether an artifact ends its texts where the checkpoint does.

Quantised artifacts may say something else, so that this is no question of equal text: each reader of the artifact's
files is asked at which ids it ends, and one chat is run to its end by what they say.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..graph.graph import WeightGraph
from ..graph.source.stops import special_ids
from .gates import GateResult, Part, at_most

_SOURCE = "generation_config.json, config.json, the tokenizer and the end of a turn in the chat template"


@dataclass(frozen=True, kw_only=True)
class StopCheck:
    """`checkpoint` are the ids that end a text, `artifact` those of each of its readers, by the file or runtime.

    `chat` is what the artifact says in one conversation, to where all of its readers end it or for a limited number
    of tokens; None if there is no chat to run.
    """

    checkpoint: tuple[int, ...]
    artifact: Mapping[str, tuple[int, ...]]
    prompt: str | None = None
    chat: tuple[int, ...] | None = None

    @property
    def is_ended(self) -> bool:
        """Whether the artifact ended the chat itself."""
        return self.chat is not None and ends_at(self.artifact, self.chat[-1])

    def to_json(self) -> dict[str, Any]:
        chat = (
            None
            if self.chat is None
            else {
                "prompt": self.prompt,
                "n_tokens": len(self.chat),
                "is_ended": self.is_ended,
                "n_after_end": self.n_after_end,
            }
        )
        readers = {reader: list(ids) for reader, ids in self.artifact.items()}
        return {"checkpoint": list(self.checkpoint), "artifact": readers, "chat": chat}

    @property
    def n_after_end(self) -> int:
        """Tokens said after the first at which the checkpoint ends."""
        said = self.chat or ()
        end = next((i for i, token in enumerate(said, start=1) if token in self.checkpoint), len(said))
        return len(said) - end


def ends_at(readers: Mapping[str, Sequence[int]], token: int) -> bool:
    """Whether all readers end a text at a token."""
    return all(token in ids for ids in readers.values())


def judge_stops(check: StopCheck, graph: WeightGraph) -> list[GateResult]:
    """No stop id unknown to a reader, no reader that stops at ordinary text, no token after the end of a turn.

    Special tokens more than the checkpoint's are no fault: llama.cpp ends at a list of texts of its own.
    """
    if not check.checkpoint:
        return []
    pairs = [(reader, i) for reader in check.artifact for i in check.checkpoint]
    missed = [_said(reader, i, graph) for reader, i in pairs if i not in check.artifact[reader]]
    gates = [_none("stop_ids_missed", missed)]
    if graph.tokenizer is not None:
        allowed = special_ids(graph.tokenizer) | set(check.checkpoint)
        pairs = [(reader, i) for reader, ids in check.artifact.items() for i in ids if i not in allowed]
        gates.append(_none("stop_ids_of_ordinary_text", [_said(reader, i, graph) for reader, i in pairs]))
    if check.chat is not None:
        where = check.prompt or ""
        gates.append(at_most("tokens_after_the_end", check.n_after_end, 0, Part.TOKENIZER, where, _SOURCE))
    return gates


def _none(name: str, wrong: Sequence[str]) -> GateResult:
    return at_most(name, len(wrong), 0, Part.TOKENIZER, ", ".join(wrong[:3]), _SOURCE)


def _said(reader: str, token: int, graph: WeightGraph) -> str:
    """`genai_config.json: 7 <|im_end|>`."""
    text = "" if graph.tokenizer is None else f" {graph.tokenizer.decode([token])}"
    return f"{reader}: {token}{text}"
