"""Whether ExecuTorch's own tokenizer reads a checkpoint's."""

from __future__ import annotations

import json
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ...convert.errors import InputError
from ...convert.model.tokenizer import Tokenizer

_OPTIONAL = ("normalizer", "pre_tokenizer", "post_processor", "decoder")


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Loads a tokenizer.json as the LLM runner does.

    Raises: InputError if the runner cannot, with the part that it does not know.
    """
    if not _loads(tokenizer.path):
        raise InputError(
            f"{tokenizer.path}: the tokenizer of ExecuTorch's LLM runner does not read it: "
            f"pytorch_tokenizers {version('pytorch_tokenizers')} does not know {_unknown(json.loads(tokenizer.raw))}"
        )


def _loads(path: Path) -> bool:
    from pytorch_tokenizers import CppHFTokenizer

    try:
        CppHFTokenizer().load(str(path))
    except RuntimeError:  # it says no more than that it failed
        return False
    return True


def _unknown(content: dict[str, Any]) -> str:
    """The part without which it loads, found by leaving each out."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokenizer.json"
        for part in _OPTIONAL:
            path.write_text(json.dumps({**content, part: None}), encoding="utf-8")
            if content.get(part) is not None and _loads(path):
                return f"its {part} '{content[part].get('type')}'"
    return f"its model '{content.get('model', {}).get('type')}', or more than one of its parts"
