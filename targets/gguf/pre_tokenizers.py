"""What llama.cpp calls the regular expression that cuts a text before its pieces are merged: `tokenizer.ggml.pre`.

Its converter guesses the name from a hash of the ids of a probe text, which every new revision of a vocabulary breaks;
here tokenizer.json's own expression is looked up.
Source: llama.cpp `conversion/base.py` (`get_vocab_base`), `src/llama-vocab.cpp`.
"""

from __future__ import annotations

from ...graph.errors import InputError
from ...graph.source.tokenizer import Tokenizer

# Split expression of tokenizer.json -> `tokenizer.ggml.pre`. The second is LFM2.5's: another spelling of
# the first, which cuts alike (llama.cpp #23826).
PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "lfm2",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s": "lfm2",
}


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of a tokenizer's expression. Raises: InputError for one that it has no name for."""
    declared = tokenizer.data.get("pre_tokenizer") or {}
    steps = declared.get("pretokenizers", [declared])
    pattern = steps[0].get("pattern", {}).get("Regex") if steps else None
    found = PRE_TOKENIZERS.get(pattern or "")
    is_byte_level = (
        [step.get("type") for step in steps] == ["Split", "ByteLevel"]
        and (steps[0].get("behavior"), steps[0].get("invert", False)) == ("Isolated", False)
        and not steps[1].get("use_regex")
    )
    if tokenizer.data["model"].get("type") != "BPE" or not is_byte_level or found is None:
        raise InputError(
            f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: expected byte-level BPE with a split "
            f"expression that it knows, found {pattern!r}; --pre NAME names llama.cpp's, if you know it"
        )
    return found


# Other names under which llama.cpp cuts as under one that is known here.
# Source: llama.cpp `src/llama-vocab.cpp`, LLAMA_VOCAB_PRE_TYPE_LLAMA3.
_SAME = {"llama3": "lfm2", "llama-v3": "lfm2", "llama-bpe": "lfm2"}


def split_expression(name: str) -> str | None:
    """The first expression that llama.cpp calls so; None if it is not known here."""
    wanted = _SAME.get(name, name)
    return next((pattern for pattern, known in PRE_TOKENIZERS.items() if known == wanted), None)
