"""Checks that bad input is refused with a sentence that says what is wrong."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lfm_convert.graph.errors import InputError, LfmConvertError


@contextmanager
def refused(*parts: object, error: type[LfmConvertError] = InputError) -> Iterator[None]:
    """The block must raise `error`, and its message must contain every part."""
    with pytest.raises(error) as caught:
        yield
    message = str(caught.value)
    missing = [str(part) for part in parts if str(part) not in message]
    assert not missing, f"{missing} not in: {message}"
