"""JSON of files that others made: only what can be written again as text."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import InputError


def parse_json(data: bytes | str, *, object_pairs_hook: Callable[[list[tuple[str, Any]]], Any] | None = None) -> Any:
    """The value. JSON may spell half a surrogate pair, which no file name, no console and no UTF-8 file can hold.

    Raises: ValueError (of which Unicode errors are a kind) for what is not JSON or not text.
    """
    text = data.decode(json.detect_encoding(data)) if isinstance(data, bytes) else data
    found = json.loads(text, object_pairs_hook=object_pairs_hook)
    if "\\ud" in text or "\\uD" in text:
        try:
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("a string holds half a surrogate pair, which is not text") from None
    return found


def read_object(path: Path) -> dict[str, Any]:
    """The object of a file. Raises: FileNotFoundError; InputError for a file that is not JSON, or another value."""
    try:
        found = parse_json(path.read_bytes())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: cannot be read as JSON: {error}") from None
    if not isinstance(found, dict):
        raise InputError(f"{path}: expected a JSON object, found {type(found).__name__}")
    return found
