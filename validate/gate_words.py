"""What each gate looks at, in a plain sentence: for readers who do not know its name."""

from __future__ import annotations

import re
from collections.abc import Mapping

_WORDS: Mapping[str, str] = {
    "texts_encoded_otherwise": "Texts that the artifact's tokenizer turns into other ids than the checkpoint's.",
    "chats_rendered_otherwise": "Chats that the artifact's template writes otherwise than the checkpoint's.",
    "stop_ids_missed": "Ids that end a text in the checkpoint and not in the artifact: it would talk on.",
    "stop_ids_of_ordinary_text": "Ids of ordinary words that end a text in the artifact: it would break off.",
    "tokens_after_the_end": "Tokens that the artifact goes on saying after the end of its turn.",
    "execution_distance_prompt": "How far the runtime's vectors are from that, in the text that is furthest off.",
    "execution_ranks": "How many pairs of texts stand the other way round beside a third than by the artifact's own stored weights.",
    "format_distance": "What that costs in vectors, against the quant's own encoder on this very checkpoint.",
    "class_distance": "Of weights that cannot be read: how far the vectors are, against the checkpoint in as many bits.",
    "execution_kld_prompt": "How far the runtime is from that at the middle position of the prompt that is furthest off.",
    "known_mistakes": "Whether a mistake that runtimes are known to make explains the predictions better than none.",
    "stored_row": "Whether each stored row is the checkpoint's, to a step of its format, in the row that is furthest off.",
    "format_weights": "How far the stored weights are, against what the quant's own encoder makes of them, in the worst tensor.",
    "format_kld": "What that costs in predictions, against the quant's own encoder on this very checkpoint.",
    "class_kld": "Of weights that cannot be read: how far the predictions are, against the checkpoint in as many bits.",
    "experts_agree": "How often a layer sends a token to the experts that its own stored weights say.",
    "finite": "Whether every logit is a number.",
    "line_kld": "Your line, max-kld: how far the predictions are from the checkpoint's, on average.",
    "line_top1": "Your line, min-top1: how often the likeliest token is the checkpoint's.",
    "line_ppl_change": "Your line, max-ppl-change: by how much the perplexity differs from the checkpoint's.",
    "line_cosine": "Your line, min-cosine: the mean cosine of the vectors with the checkpoint's.",
    "distance_over_baseline": "By how much the vectors are further from the checkpoint's than the stored baseline was.",
    "kld_over_baseline": "By how much the artifact is further from the checkpoint than the stored baseline was.",
    "baseline_entry": "Whether the baseline knows this artifact; --require-baseline asks for it.",
}

# Gates named for a quantile, `execution_kld_p97`: at so many positions of a hundred it is less.
_QUANTILE = re.compile(r"execution_(kld|distance)_p(\d+)")
_OF = {"kld": "positions", "distance": "vectors"}

# Gates named `cache_HOW_kld`: the beginning of HOW, and what was done.
_CACHE: Mapping[str, str] = {
    "stepwise": "read token by token",
    "chunked": "read in chunks",
    "at_once": "read at once, for its last position only,",
    "interleaved": "read by turns with another conversation",
    "reset": "read again after another conversation",
    "batch": "read in a batch with another",
}


def gate_words(name: str) -> str:
    """The sentence of a gate; empty for a name that this table does not know."""
    if (found := _QUANTILE.fullmatch(name)) is not None:
        where = f"at {found[2]} of 100 {_OF[found[1]]} it is less"
        return f"How far the runtime is from what its own stored weights say; {where}."
    if not name.startswith("cache_"):
        return _WORDS.get(name, "")
    how = name.removeprefix("cache_")
    done = next((words for start, words in _CACHE.items() if how.startswith(start)), "read otherwise")
    return f"Whether a prompt that is {done} gives the same predictions as read whole."
