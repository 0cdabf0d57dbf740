"""What llama.cpp is told of each token beside its text.

Source: llama.cpp `include/llama.h` (`enum llama_token_type`), `conversion/base.py` (`does_token_look_special`).
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

UNUSED_TOKEN = "[PAD{i}]"
WORD_START = "▁"  # how SentencePiece writes a space
# Some checkpoints leave "special" out for tokens that are: these look like it.
_LOOKS = (("<|", "|>"), ("<｜", "｜>"), ("<unused", ">"))
_SPECIAL = frozenset({"<pad>", "<mask>", "<2mass>", "[@BOS@]"})


class TokenType(enum.IntEnum):
    """`enum llama_token_type`."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


def added_token(token: Mapping[str, Any]) -> tuple[str, TokenType]:
    """Text and type of one of tokenizer.json's added tokens.

    llama.cpp looks for those that are user-defined in a text as it was given, so that their spaces are written as such.
    """
    text = str(token["content"])
    looks_special = text in _SPECIAL or any(text.startswith(start) and text.endswith(end) for start, end in _LOOKS)
    if token.get("special") or looks_special:
        return text, TokenType.CONTROL
    return text.replace(WORD_START, " "), TokenType.USER_DEFINED
