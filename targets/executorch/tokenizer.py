"""Whether ExecuTorch's own tokenizer reads a checkpoint's."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...graph.errors import InputError
from ...graph.source.tokenizer import Tokenizer

_OPTIONAL = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


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
