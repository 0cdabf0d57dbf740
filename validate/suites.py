"""Which prompts an artifact is run on: the shared set, a small part of it, or a text cut into chunks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from ..graph.errors import InputError, UsageError
from ..graph.source.assets import Assets
from ..graph.source.tokenizer import Tokenizer
from .prompts import EncodedPrompt, Prompt, load_prompts
from .selection import LONG_PROBE_TOKENS

SUITES = ("smoke", "standard")
# llama-perplexity's chunk; its second half is scored, so that every scored token has context.
CHUNK_TOKENS = 512

_STORED = "prompt_ids.json"
_LONG = "long"


def choose_prompts(
    tokenizer: Tokenizer | None,
    *,
    suite: str = "standard",
    prompts: Path | None = None,
    text: Path | None = None,
    n_chunks: int | None = None,
) -> tuple[Prompt, ...]:
    """The prompts of a named suite, of a JSON Lines file, or of a text file, whichever is given.

    Raises: UsageError for an unknown suite, two sources at once, chunks of no text, or a text too short; InputError for
    a bad file.
    """
    if prompts is not None and text is not None:
        raise UsageError("give either prompts or a text, not both")
    if suite not in SUITES:
        raise UsageError(f"unknown suite '{suite}': expected one of {', '.join(SUITES)}")
    if n_chunks is not None and (text is None or n_chunks < 1):
        raise UsageError(f"--chunks {n_chunks}: expected at least 1, of a text that is given")
    if text is not None:
        return chunk_text(text, tokenizer, n_chunks=n_chunks)
    found = load_prompts(prompts)
    return found if prompts is not None or suite == "standard" else smoke(found)


def name_suite(
    *, suite: str, prompts: Path | None, text: Path | None, n_chunks: int | None, is_drawn: bool = False
) -> str:
    """What reports call the prompts: a suite, or a file's name; `is_drawn` says that the model drew them itself."""
    if prompts is not None:
        return prompts.name
    if text is not None:
        return text.name if n_chunks is None else f"{text.name}, {n_chunks} chunks at most"
    return f"{suite}, drawn from the checkpoint" if is_drawn else suite


def smoke(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The first prompts that together have every language and every kind; of the longest one no more than a probe reads."""
    languages: set[str] = set()
    kinds: set[str] = set()
    chosen = []
    for prompt in prompts:
        if prompt.kind != _LONG and not (prompt.language in languages and prompt.kind in kinds):
            chosen.append(prompt)
            languages.add(prompt.language)
            kinds.add(prompt.kind)
    long = [prompt for prompt in prompts if prompt.kind == _LONG]
    longest = max(long, key=lambda prompt: len(prompt.text or ""), default=None)
    return (*chosen, replace(longest, max_tokens=LONG_PROBE_TOKENS)) if longest else tuple(chosen)


def chunk_text(path: Path, tokenizer: Tokenizer | None, *, n_chunks: int | None = None) -> tuple[Prompt, ...]:
    """A text as llama-perplexity reads it: chunks of 512 tokens, BOS in place of each first, second half scored.

    Of a chunk positions 256 … 510 count, each for the token after it; what is left over at the end does not.
    Source: llama.cpp `tools/perplexity/perplexity.cpp`.
    """
    if tokenizer is None:
        raise InputError(f"{path}: is text, and the checkpoint has no tokenizer.json")
    try:
        ids = tokenizer.encode(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as UTF-8 text: {error}") from None
    if len(ids) < 2 * CHUNK_TOKENS:
        raise UsageError(f"{path}: has {len(ids)} tokens: expected at least {2 * CHUNK_TOKENS}, two chunks")
    starts = range(0, len(ids) - CHUNK_TOKENS + 1, CHUNK_TOKENS)
    return tuple(
        Prompt(
            id=f"chunk {number}",
            kind="text",
            ids=(ids[0], *ids[start + 1 : start + CHUNK_TOKENS]),
            scored=(CHUNK_TOKENS // 2, CHUNK_TOKENS - 1),
        )
        for number, start in enumerate(starts[:n_chunks], start=1)
    )


def check_stored_ids(
    encoded: Sequence[EncodedPrompt], prompts: Sequence[Prompt], tokenizer: Tokenizer | None, assets: Assets
) -> None:
    """Holds prompts of the shared set to the ids stored for this tokenizer, if it is one we have stored them for.

    Chats are held to them only if their template and special tokens are those the ids were stored with.
    Raises: InputError if the installed libraries give other ids than they did.
    """
    stored = json.loads((files(__package__) / _STORED).read_text(encoding="utf-8"))
    if tokenizer is None or tokenizer.sha256 != stored["tokenizer_sha256"]:
        return
    shared = {prompt.id: replace(prompt, max_tokens=None) for prompt in load_prompts()}
    known = {prompt.id for prompt in prompts if replace(prompt, max_tokens=None) == shared.get(prompt.id)}
    chats = {prompt.id for prompt in prompts if prompt.messages}
    is_template_known = chat_sha256(assets) == stored["chat_sha256"]
    wrong = [
        prompt.id
        for prompt in encoded
        if prompt.id in known
        and (is_template_known or prompt.id not in chats)
        and not prompt.is_encoded_as(stored["ids"].get(prompt.id, prompt.token_ids))
    ]
    if not wrong:
        return
    more = f" and {len(wrong) - 1} more encode" if len(wrong) > 1 else " encodes"
    only_chats = chats.issuperset(wrong)
    library = f"jinja2 {version('jinja2')} renders chats" if only_chats else f"tokenizers {version('tokenizers')} cuts"
    raise InputError(
        f"prompt '{wrong[0]}'{more} to other ids than are stored for this very tokenizer"
        f"{' and chat template' if only_chats else ''}: the installed {library} otherwise than before"
    )


def chat_sha256(assets: Assets) -> str:
    """What decides how a chat is written: the templates, and the special tokens they know."""
    decisive = [assets.chat_template, assets.named_templates, assets.special_tokens]
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()
