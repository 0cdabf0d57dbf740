"""For how many positions a file is made that holds its caches, and one table of each rope."""

from __future__ import annotations

from ..graph.config import ModelConfig
from ..graph.errors import UsageError

DEFAULT_CONTEXT = 4096


def longest_context(config: ModelConfig) -> int:
    """The model's own length, or that up to which texts turn by the first table of every rope."""
    return min([config.context_length, *(rope.long.longer_than for rope in config.ropes if rope.long)])


def choose_context(config: ModelConfig, wanted: int | None) -> int:
    """Raises UsageError for a context that the model was not made for, that takes another rope, or that holds nothing."""
    longest = longest_context(config)
    if wanted is None:
        return min(DEFAULT_CONTEXT, longest)
    if not 2 <= wanted <= longest:
        is_own = longest == config.context_length
        why = "the model's own length" if is_own else "beyond which texts turn by a table that the file does not have"
        raise UsageError(f"--context {wanted}: expected 2 to {longest}, {why}")
    return wanted


def rope_notes(config: ModelConfig) -> tuple[str, ...]:
    """What a plan says of a model whose long texts turn by another table."""
    longest, own = longest_context(config), config.context_length
    if longest == own:
        return ()
    return (
        f"context at most {longest} of the model's {own}: longer texts turn by a table that the file does not have",
    )
