"""How much memory our own process takes to compare artifacts with a checkpoint: an estimate from shapes alone."""

from __future__ import annotations

from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.reference.forward import HEAD_ELEMENTS
from ..graph.reference.weights import KEEP_BYTES
from ..graph.roles import Trait
from ..graph.units import format_size
from .reference import BATCH_TOKENS

# The interpreter and what it imports, in bytes; what a layer holds of its widest activations at a time; and how many
# forwards there are at a time, each with a block of logits: the checkpoint's, the artifact's, and that in another
# arithmetic.
_BASE_BYTES = 150 * 10**6
_WIDE_ACTIVATIONS = 4
_N_FORWARDS = 3


def comparison_bytes(graph: WeightGraph) -> int:
    """Bytes that our own process takes to compare artifacts with a checkpoint, beside the files it maps."""
    weights = list(graph.weights())
    widest = max(w.view.shape[-2] for w in weights if w.role.trait in (Trait.MATRIX, Trait.EXPERTS))
    activations = 4 * _WIDE_ACTIVATIONS * BATCH_TOKENS * widest
    logits = 4 * _N_FORWARDS * min(HEAD_ELEMENTS, BATCH_TOKENS * graph.config.n_outputs)
    whole = 4 * graph.n_parameters
    return _BASE_BYTES + activations + logits + (_N_FORWARDS * whole if whole <= KEEP_BYTES else 0)


def refuse_too_little(graph: WeightGraph, max_memory: int | None) -> None:
    """Raises UsageError for a limit that is less than comparing takes."""
    least = comparison_bytes(graph)
    if max_memory is not None and max_memory < least:
        raise UsageError(
            f"--max-memory {format_size(max_memory)} is too little to compare with {graph.name}: "
            f"at least {format_size(least)}"
        )
