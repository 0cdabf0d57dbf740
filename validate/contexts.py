"""Which artifacts are compared on which prompts: those that hold fewer positions than a prompt has, on what fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

from ..graph.config import ModelConfig
from ..graph.errors import LfmConvertError
from ..targets.target import Artifact
from .jobs import resolve_target
from .prompts import N_GREEDY_TOKENS, EncodedPrompt, fit_context


def by_context(
    artifacts: Sequence[Artifact],
    prompts: Sequence[EncodedPrompt],
    config: ModelConfig,
    find_target: str,
    *,
    note: Callable[[str], None],
) -> Iterator[tuple[tuple[EncodedPrompt, ...], list[Artifact]]]:
    """Prompts as they fit, and the artifacts that they fit: an artifact's verdict does not depend on those beside it.

    Raises: UsageError for an artifact that holds too few positions to compare anything.
    """
    longest = max(len(prompt.token_ids) for prompt in prompts)
    groups: dict[int, list[Artifact]] = {}
    for artifact in artifacts:
        context = _context(artifact, config, find_target)
        groups.setdefault(min(context, longest + N_GREEDY_TOKENS), []).append(artifact)
    for context, together in groups.items():
        labels = ", ".join(artifact.label for artifact in together)
        yield fit_context(prompts, context, holder=labels, note=note), together


def _context(artifact: Artifact, config: ModelConfig, find_target: str) -> int:
    """The positions of an artifact; of one that cannot be read the model's, since whoever runs it says what is wrong."""
    try:
        return resolve_target(find_target, artifact.target).longest_text(artifact, config)
    except (OSError, LfmConvertError):
        return config.context_length
