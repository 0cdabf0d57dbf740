"""Which prompts an artifact is run on: the shared set, a small part of it, or a text cut into chunks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

from ..convert.errors import InputError, UsageError
from ..convert.model.tokenizer import Tokenizer
from .prompts import EncodedPrompt, Prompt, load_prompts

SUITES = ("smoke", "standard")
# llama-perplexity's chunk; its second half is scored, so that every scored token has context.
CHUNK_TOKENS = 512

_STORED = "prompt_ids.json"


def choose_prompts(
    tokenizer: Tokenizer | None,
    *,
    suite: str = "standard",
    prompts: Path | None = None,
    text: Path | None = None,
    n_chunks: int | None = None,
) -> tuple[Prompt, ...]:
    """The prompts of a named suite, of a JSON Lines file, or of a text file, whichever is given.

    Raises: UsageError for an unknown suite, two sources at once, or a text too short; InputError for a bad file.
    """
    if prompts is not None and text is not None:
        raise UsageError("give either prompts or a text, not both")
    if suite not in SUITES:
        raise UsageError(f"unknown suite '{suite}': expected one of {', '.join(SUITES)}")
    if text is not None:
        return chunk_text(text, tokenizer, n_chunks=n_chunks)
    found = load_prompts(prompts)
    return found if prompts is not None or suite == "standard" else smoke(found)


def smoke(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The first prompts that together have every language and every kind but the long ones."""
    languages: set[str] = set()
    kinds: set[str] = {"long"}
    chosen = []
    for prompt in prompts:
        if prompt.kind != "long" and not (prompt.language in languages and prompt.kind in kinds):
            chosen.append(prompt)
            languages.add(prompt.language)
            kinds.add(prompt.kind)
    return tuple(chosen)


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


def check_stored_ids(encoded: Sequence[EncodedPrompt], tokenizer: Tokenizer | None) -> None:
    """Holds prompts of the shared set to the ids stored for this tokenizer, if it is one we have stored them for.

    Raises: InputError if the installed `tokenizers`, or the template's rendering, gives other ids than it did.
    """
    stored = json.loads((files(__package__) / _STORED).read_text(encoding="utf-8"))
    if tokenizer is None or tokenizer.sha256 != stored["tokenizer_sha256"]:
        return
    wrong = [p.id for p in encoded if stored["ids"].get(p.id, list(p.token_ids)) != list(p.token_ids)]
    if wrong:
        raise InputError(
            f"prompt '{wrong[0]}' and {len(wrong) - 1} more encode to other ids than are stored for this tokenizer: "
            "the installed tokenizers library does not do what it did"
        )
