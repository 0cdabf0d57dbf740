"""Whether ExecuTorch's own tokenizer reads a checkpoint's."""

from __future__ import annotations

from ...convert.errors import InputError
from ...convert.model.tokenizer import Tokenizer


def check_tokenizer(tokenizer: Tokenizer) -> None:
    """Loads a tokenizer.json as the LLM runner does.

    Raises: InputError if the runner cannot.
    """
    from pytorch_tokenizers import CppHFTokenizer

    try:
        CppHFTokenizer().load(str(tokenizer.path))
    except Exception as error:  # the binding raises plain RuntimeError
        raise InputError(
            f"{tokenizer.path}: the tokenizer of ExecuTorch's LLM runner does not read it: {error}"
        ) from None
