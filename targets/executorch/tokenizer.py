"""A checkpoint's tokenizer for ExecuTorch's own library: whether it reads it, and in a form that it follows.

| of a tokenizer.json                        | the library                                     | is written                  |
|--------------------------------------------|-------------------------------------------------|-----------------------------|
| form NFC                                   | takes accents away from letters that have them | without                     |
| a run of `▁` as an added token             | forgets that merges give it                     | as the token of merges alone |

Source: measured with pytorch_tokenizers 1.5.0.
"""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ...graph.source.tokenizer import Tokenizer

_OPTIONAL = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


_WORD_START = "▁"
COMPOSED_NOTE = (
    "ExecuTorch's tokenizer brings no text into form NFC, otherwise than the checkpoint's: texts that are not in it have "
    "other ids"
)


def followed(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer as ExecuTorch's library follows it: the same ids for texts in form NFC."""
    runs = [token for token in tokenizer.added_tokens if _is_run(str(token["content"]))]
    merged = [token for token in runs if len(tokenizer.backend.model.tokenize(token["content"])) == 1]
    if not tokenizer.is_composed and not merged:
        return tokenizer
    data = {**tokenizer.data, "added_tokens": [token for token in tokenizer.added_tokens if token not in merged]}
    if tokenizer.is_composed:
        data["normalizer"] = None
    return Tokenizer(tokenizer.path, raw=(json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode())


def _is_run(text: str) -> bool:
    return bool(text) and set(text) == {_WORD_START}


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Loads a tokenizer.json as the LLM runner does.

    Raises: InputError if the runner cannot, with the part that it does not know.
    """
    if not _loads(tokenizer.raw):
        raise InputError(
            f"{tokenizer.path}: the tokenizer of ExecuTorch's LLM runner does not read it: "
            f"pytorch_tokenizers {version('pytorch_tokenizers')} does not know {_unknown(json.loads(tokenizer.raw))}"
        )


def _loads(raw: bytes) -> bool:
    """Whether it reads these bytes, which need not be those of a file: tokens may have been added."""
    from pytorch_tokenizers import CppHFTokenizer

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        path.write_bytes(raw)
        try:
            CppHFTokenizer().load(str(path))
        except RuntimeError:  # it says no more than that it failed
            return False
    return True


def _unknown(content: dict[str, Any]) -> str:
    """The part without which it loads, found by leaving each out."""
    for part in _OPTIONAL:
        if content.get(part) is not None and _loads(json.dumps({**content, part: None}).encode()):
            return f"its {part} '{content[part].get('type')}'"
    return f"its model '{content.get('model', {}).get('type')}', or more than one of its parts"
