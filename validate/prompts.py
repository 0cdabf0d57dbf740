"""The prompts that artifacts are compared on, and their token ids.

A prompt set is JSON Lines: `{"id", "language", "kind"}` and one of `text`, `messages` (with `tools`
if wanted) or `ids`; `max_tokens` cuts one that is longer. `prompts.jsonl` beside this file is the shared set; it holds no text of any
calibration or benchmark set.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.resources import files
from itertools import pairwise
from pathlib import Path
from typing import Any

from ..graph.errors import Faults, InputError, UsageError
from ..graph.graph import WeightGraph
from ..graph.json_text import parse_json
from ..graph.source.assets import Assets
from ..graph.source.chat import Message, Refusal, try_chats
from ..graph.source.tokenizer import Tokenizer

# Fewer positions than this say nothing about the tail of a distribution.
MIN_POSITIONS = 100
# Tokens of each prompt that is continued freely.
N_GREEDY_TOKENS = 32

_CONTENTS = ("text", "messages", "ids")
_NOTHING = Refusal("it writes no text", is_stated=False)


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One prompt: exactly one of `text`, `messages` and `ids` is given; `scored` as in `EncodedPrompt`. The model reads
    no more than `max_tokens` of it.
    """

    id: str
    language: str = ""
    kind: str = ""
    text: str | None = None
    messages: tuple[Message, ...] = ()
    tools: tuple[Mapping[str, Any], ...] = ()
    ids: tuple[int, ...] = ()
    scored: tuple[int, int] | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Chat:
    """One conversation and the tools it is about."""

    messages: tuple[Message, ...]
    tools: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True)
class EncodedPrompt:
    """A prompt as the model sees it.

    `scored` is the range of positions that count, all if None. `text` is what the tokenizer was given, BOS left
    to it; None for a prompt of ids. Of one that `is_cut`, only the beginning of what the tokenizer gave is read.
    """

    id: str
    token_ids: tuple[int, ...]
    scored: tuple[int, int] | None = None
    text: str | None = None
    is_cut: bool = False

    def is_encoded_as(self, ids: Sequence[int]) -> bool:
        """Whether another tokenizer gave the same ids for the text."""
        return self.token_ids == tuple(ids[: len(self.token_ids)] if self.is_cut else ids)

    def cut(self, n_tokens: int | None) -> EncodedPrompt:
        """The same, of so many tokens at most."""
        if n_tokens is None or len(self.token_ids) <= n_tokens:
            return self
        scored = self.scored and (min(self.scored[0], n_tokens), min(self.scored[1], n_tokens))
        return replace(self, token_ids=self.token_ids[:n_tokens], scored=scored, is_cut=True)

    @property
    def n_scored(self) -> int:
        first, last = self.scored or (0, len(self.token_ids))
        return last - first


def added_tokens_text(tokenizer: Tokenizer | None) -> EncodedPrompt | None:
    """A text of every token that a tokenizer has beside its own vocabulary: prompts use few of them.

    A space lies between two, but beside one that takes it away, which not every runtime can. A token that is a run of
    spaces is written with spaces, as in a text.
    """
    if tokenizer is None or not tokenizer.added_tokens:
        return None
    tokens = tokenizer.added_tokens
    gaps = ("" if left.get("rstrip") or right.get("lstrip") else " " for left, right in pairwise(tokens))
    pieces = (f"{token['content']}{gap}" for token, gap in zip(tokens, (*gaps, ""), strict=True))
    text = "".join(pieces).replace("▁", " ")
    return EncodedPrompt("added tokens", tuple(tokenizer.encode(text)), text=text)


def load_prompts(path: Path | None = None) -> tuple[Prompt, ...]:
    """The prompts of a file, or the shared set.

    Raises: InputError naming the file and every bad line; UsageError if there is no prompt at all.
    """
    where = str(path) if path else "prompts.jsonl"
    try:
        text = (path or files(__package__) / "prompts.jsonl").read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{where}: cannot be read as UTF-8 text: {error}") from None
    faults = Faults()
    prompts: dict[str, Prompt] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            prompt = _parse(line)
            if prompt.id in prompts:
                raise ValueError(f"id '{prompt.id}' is used twice")
            prompts[prompt.id] = prompt
        except (ValueError, RecursionError) as error:
            faults.add(f"line {number}: {error}")
    faults.raise_if_any(where)
    if not prompts:
        raise UsageError(f"{where}: holds no prompt, so nothing could be compared")
    return tuple(prompts.values())


def _parse(line: str) -> Prompt:
    """One line. Raises ValueError with what is wrong (JSON errors are ValueErrors, too)."""
    row = parse_json(line)
    if not isinstance(row, dict):
        raise ValueError(f"expected a JSON object, found {type(row).__name__}")
    given = [key for key in _CONTENTS if key in row]
    if len(given) != 1:
        raise ValueError(f"expected exactly one of {', '.join(_CONTENTS)}, found {' and '.join(given) or 'none'}")
    if not isinstance(row.get("id"), str) or not row["id"]:
        raise ValueError("'id' must be a non-empty string")
    for key in ("language", "kind", "text"):
        if not isinstance(row.get(key, ""), str):
            raise ValueError(f"'{key}' must be a string")
    _check_messages(row)
    ids = row.get("ids", [0])
    if not isinstance(ids, list) or not ids or any(type(i) is not int or i < 0 for i in ids):
        raise ValueError("'ids' must be a non-empty list of token ids")
    max_tokens = row.get("max_tokens")
    if max_tokens is not None and (type(max_tokens) is not int or max_tokens < 1):
        raise ValueError("'max_tokens' must be a number of at least 1")
    return Prompt(
        id=row["id"],
        language=row.get("language", ""),
        kind=row.get("kind", ""),
        text=row.get("text"),
        messages=tuple(row.get("messages", ())),
        tools=tuple(row.get("tools", ())),
        ids=tuple(row.get("ids", ())),
        max_tokens=max_tokens,
    )


def _check_messages(row: Mapping[str, Any]) -> None:
    messages, tools = row.get("messages", [{"role": ""}]), row.get("tools", [])
    if not isinstance(messages, list) or not messages:
        raise ValueError("'messages' must be a non-empty list")
    if not all(isinstance(m, dict) and isinstance(m.get("role"), str) for m in messages):
        raise ValueError("every message must be an object with a 'role'")
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise ValueError("'tools' must be a list of objects")
    if tools and "messages" not in row:
        raise ValueError("'tools' go with 'messages'")


def encode_prompts(
    prompts: Sequence[Prompt],
    tokenizer: Tokenizer | None,
    assets: Assets,
    *,
    vocab_size: int,
    note: Callable[[str], None] = lambda _: None,
) -> tuple[EncodedPrompt, ...]:
    """The token ids of prompts, as the checkpoint's own tokenizer and chat template give them.

    Chats are encoded as the template renders them; it writes the BOS token itself, so none is added.
    Without a template (a base model) their contents are encoded as one text. Chats that the template refuses, as some
    do with system messages, tools or two turns of one role, are left out, which `note` is told.
    Raises: InputError for a prompt that the checkpoint cannot encode; UsageError if the set is too
    small to compare anything.
    """
    rendered = _render(prompts, assets) if tokenizer is not None else {}
    refused = {name: found for name, found in rendered.items() if isinstance(found, Refusal)}
    texts = {name: found for name, found in rendered.items() if isinstance(found, str)}
    _judge(refused, n_rendered=len(texts), note=note)
    opening = opening_text(tokenizer, assets)
    encoded = tuple(
        _encode(p, texts.get(p.id), tokenizer, opening=opening).cut(p.max_tokens)
        for p in prompts
        if p.id not in refused
    )
    check_encoded(encoded, vocab_size=vocab_size)
    return encoded


def encode_for(
    graph: WeightGraph, prompts: Sequence[Prompt], *, note: Callable[[str], None] = lambda _: None
) -> tuple[EncodedPrompt, ...]:
    """Prompts as a model reads them: encoded by its own tokenizer and template, and cut to the positions that it has.

    Raises: as `encode_prompts` and `fit_context`.
    """
    config = graph.config
    encoded = encode_prompts(prompts, graph.tokenizer, graph.assets, vocab_size=config.vocab_size, note=note)
    return fit_context(encoded, config.context_length, holder=graph.name, note=note)


def fit_context(
    prompts: Sequence[EncodedPrompt], context: int, *, holder: str, note: Callable[[str], None] = lambda _: None
) -> tuple[EncodedPrompt, ...]:
    """Prompts cut to what the `holder` of so many positions holds with the text that continues them; `note` is told.

    Raises: UsageError if there are too few positions to compare anything.
    """
    if context < 2 * N_GREEDY_TOKENS:
        raise UsageError(
            f"{holder}: a context of {context} tokens: expected at least {2 * N_GREEDY_TOKENS} to be compared, since "
            "shorter texts prove nothing"
        )
    longest = context - N_GREEDY_TOKENS
    n_cut = sum(len(prompt.token_ids) > longest for prompt in prompts)
    if n_cut:
        note(f"{holder}: {n_cut} of {len(prompts)} prompts are cut, to fit a context of {context} tokens")
    found = tuple(prompt.cut(longest) for prompt in prompts)
    _refuse_too_few(found)
    return found


def _judge(refused: Mapping[str, Refusal], *, n_rendered: int, note: Callable[[str], None]) -> None:
    """Says which chats are left out, and why. Raises: InputError for a template that works with no chat at all."""
    reasons: dict[str, list[str]] = {}
    for name, refusal in refused.items():
        reasons.setdefault(refusal.reason, []).append(name)
    if refused and not n_rendered and not any(refusal.is_stated for refusal in refused.values()):
        raise InputError(f"chat template cannot be rendered: {next(iter(reasons))}")
    for reason, names in reasons.items():
        more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
        note(f"chat '{names[0]}'{more} left out, since the chat template refuses: {reason}")


def check_encoded(encoded: Sequence[EncodedPrompt], *, vocab_size: int) -> None:
    """Raises: InputError for ids that the model does not have; UsageError for too few positions."""
    faults = Faults()
    for item in encoded:
        if not item.token_ids:
            faults.add(f"prompt '{item.id}' encodes to no token")
        elif max(item.token_ids) >= vocab_size:
            faults.add(f"prompt '{item.id}' holds id {max(item.token_ids)}: expected less than vocab_size {vocab_size}")
    faults.raise_if_any("prompts")
    _refuse_too_few(encoded)


def _refuse_too_few(encoded: Sequence[EncodedPrompt]) -> None:
    n_positions = sum(item.n_scored for item in encoded)
    if n_positions < MIN_POSITIONS:
        raise UsageError(
            f"{len(encoded)} prompts score {n_positions} positions: expected at least {MIN_POSITIONS}, "
            "since fewer prove nothing"
        )


def _render(prompts: Sequence[Prompt], assets: Assets) -> dict[str, str | Refusal]:
    """The chats by id, as the template writes or refuses them; those that no template is for are not among them."""
    groups: dict[str, list[Prompt]] = {}  # one process renders all chats with the same tools
    for prompt in prompts:
        if prompt.messages:
            groups.setdefault(json.dumps(prompt.tools), []).append(prompt)
    found: dict[str, str | Refusal] = {}
    for group in groups.values():
        tools = group[0].tools or None
        template = assets.template_for(tools)
        if template is None:
            continue
        conversations = [prompt.messages for prompt in group]
        texts = try_chats(template, conversations, special_tokens=assets.special_tokens, tools=tools)
        found |= {prompt.id: text or _NOTHING for prompt, text in zip(group, texts, strict=True)}
    return found


def chats_of(prompts: Sequence[Prompt], assets: Assets, encoded: Iterable[EncodedPrompt]) -> dict[str, Chat]:
    """The conversations by prompt id, in order: those among the encoded prompts that a template rendered."""
    kept = {prompt.id for prompt in encoded if prompt.text is not None}
    return {
        prompt.id: Chat(prompt.messages, prompt.tools)
        for prompt in prompts
        if prompt.messages and prompt.id in kept and assets.template_for(prompt.tools) is not None
    }


def _encode(prompt: Prompt, rendered: str | None, tokenizer: Tokenizer | None, *, opening: str) -> EncodedPrompt:
    if prompt.ids:
        return EncodedPrompt(prompt.id, prompt.ids, prompt.scored)
    if tokenizer is None:
        raise InputError(f"prompt '{prompt.id}' is text, and the checkpoint has no tokenizer.json: give prompts as ids")
    if rendered is not None:
        ids = tuple(tokenizer.encode(rendered, special=False))
        return EncodedPrompt(prompt.id, ids, text=rendered.removeprefix(opening))
    contents = "\n".join(str(message.get("content") or "") for message in prompt.messages)
    text = contents if prompt.text is None else prompt.text
    return EncodedPrompt(prompt.id, tuple(tokenizer.encode(text)), text=text)


def opening_text(tokenizer: Tokenizer | None, assets: Assets) -> str:
    """The BOS token's text, if the tokenizer begins texts with it: then one that a template writes comes off before it
    is given a text. Empty of a tokenizer that begins with none: there the same token is part of the text.
    """
    bos = assets.special_tokens.get("bos_token", "")
    is_opening = tokenizer is not None and bos and tokenizer.opening == (tokenizer.vocab.get(bos),)
    return bos if is_opening else ""
