"""The tokenizer as GGUF metadata: llama.cpp runs byte-level BPE and SentencePiece's itself.

Source: llama.cpp `conversion/base.py` (`_set_vocab_gpt2`, `_set_vocab_sentencepiece`), `gguf-py/gguf/vocab.py`, `src/llama-vocab.cpp`.
"""

from __future__ import annotations

import string as characters
from collections.abc import Mapping
from typing import Any

from ...graph.graph import WeightGraph
from ...graph.source.assets import Assets, token_text
from ...graph.source.tokenizer import Tokenizer
from ...quantize.gguf_file.header import KeyValue, boolean, float32s, int32s, string, strings, uint32
from .pre_tokenizers import cutting_notes, pre_tokenizer
from .sentencepiece import is_sentencepiece, pieces, puts_space
from .token_types import UNUSED_TOKEN, TokenType, added_token

MODEL, BPE, SENTENCEPIECE, NO_VOCABULARY = "tokenizer.ggml.model", "gpt2", "llama", "none"
PRE, TOKENS, TOKEN_TYPES = "tokenizer.ggml.pre", "tokenizer.ggml.tokens", "tokenizer.ggml.token_type"
MERGES, SCORES, ADDS = "tokenizer.ggml.merges", "tokenizer.ggml.scores", "tokenizer.ggml.add_{kind}_token"
SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
TEMPLATE, TEMPLATE_NAMES = "tokenizer.chat_template", "tokenizer.chat_templates"
# Special token of tokenizer_config.json -> key of its id.
SPECIAL_IDS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
# Keys for what ends a turn but is not the end-of-sequence token; the converter writes neither for this family.
TURN_ENDS = ("tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id")
# Tokens that llama.cpp ends a generation at by their text alone.
ENDS_BY_TEXT = frozenset(
    (
        "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>", "<end_of_turn>",
        "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|end_of_text|>",
        "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>", "<｜end▁of▁sentence｜>", "[e~[",
        # of code: what fills a gap, and what parts files and repositories
        "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]", "<|fim_repo|>", "<|repo_name|>", "<fim-repo>",
        "<REPO>", "<reponame>", "<|file_sep|>",
    )
)  # fmt: skip
_NAME_CHARACTERS = frozenset(characters.ascii_letters + characters.digits)


def vocabulary(graph: WeightGraph, *, pre: str | None = None, says_prefix: bool = False) -> list[KeyValue]:
    """The `tokenizer.*` pairs. Without a tokenizer: model `none`, which takes token ids only.

    `pre` is what llama.cpp calls the pre-tokenizer; without it tokenizer.json's own is recognised. `says_prefix` is of
    an architecture whose converter repeats tokenizer_config.json's `add_prefix_space`.

    Raises: InputError for a tokenizer that llama.cpp has no counterpart of; BackendError as `pieces`.
    """
    tokenizer = graph.tokenizer
    if tokenizer is None:
        return [string(MODEL, NO_VOCABULARY)]
    _ = tokenizer.backend  # the library refuses a malformed file, so that its structure is known from here on
    stated = graph.assets.tokenizer_config.get("add_prefix_space") if says_prefix else None
    has_prefix = puts_space(tokenizer) if is_sentencepiece(tokenizer) else None
    ends = zip(TURN_ENDS, turn_ends(graph, tokenizer), strict=False)
    return [
        *([boolean(SPACE_PREFIX, stated)] if isinstance(stated, bool) and has_prefix is None else []),
        *(
            _byte_level(tokenizer, graph.config.vocab_size, pre)
            if has_prefix is None
            else _sentencepiece(tokenizer, graph.config.vocab_size)
        ),
        *(uint32(SPECIAL_IDS[kind], token_id) for kind, token_id in _special_ids(graph, tokenizer).items()),
        *(uint32(key, token_id) for key, token_id in ends),
        *(boolean(ADDS.format(kind=kind), added) for kind, added in _added(graph, tokenizer).items()),
        *_templates(graph.assets),
        *([] if has_prefix is None else [boolean(SPACE_PREFIX, has_prefix)]),
    ]


def _byte_level(tokenizer: Tokenizer, n_rows: int, pre: str | None) -> list[KeyValue]:
    tokens, types = _tokens(tokenizer, n_rows)
    merges = [" ".join(part.replace(" ", "Ġ") for part in pair) for pair in tokenizer.merges]
    return [
        string(MODEL, BPE),
        string(PRE, pre or pre_tokenizer(tokenizer)),
        strings(TOKENS, tokens),
        int32s(TOKEN_TYPES, types),
        *([strings(MERGES, merges)] if merges else []),
    ]


def _sentencepiece(tokenizer: Tokenizer, n_rows: int) -> list[KeyValue]:
    found = pieces(tokenizer, n_rows)
    return [
        string(MODEL, SENTENCEPIECE),
        string(PRE, "default"),
        strings(TOKENS, [piece.text for piece in found]),
        float32s(SCORES, [piece.score for piece in found]),
        int32s(TOKEN_TYPES, [piece.type for piece in found]),
    ]


def text_notes(graph: WeightGraph, *, pre: str | None = None) -> tuple[str, ...]:
    """What llama.cpp does otherwise with texts than the checkpoint's tokenizer; `pre` as in `vocabulary`."""
    tokenizer = graph.tokenizer
    if tokenizer is None:
        return ()
    notes = () if is_sentencepiece(tokenizer) else cutting_notes(tokenizer, is_named=pre is not None)
    greedy = [str(token["content"]) for token in tokenizer.added_tokens if token.get("lstrip") or token.get("rstrip")]
    others = f" and {len(greedy) - 1} more" if greedy[1:] else ""
    keeps = (
        f"llama.cpp leaves the spaces beside {greedy[0]!r}{others}, which the tokenizer takes away" if greedy else ""
    )
    return (*notes, *([keeps] if keeps else []))


def _templates(assets: Assets) -> list[KeyValue]:
    """The default template, and before it each named one and the list of their names.

    Source: llama.cpp `gguf-py/gguf/gguf_writer.py`, `add_chat_template`, which keeps letters and digits of a name.
    """
    named = {
        "".join(c if c in _NAME_CHARACTERS else "_" for c in name): text
        for name, text in assets.named_templates.items()
    }
    return [
        *(string(f"{TEMPLATE}.{name}", text) for name, text in named.items() if name),
        *([strings(TEMPLATE_NAMES, [name for name in named if name])] if any(named) else []),
        *([string(TEMPLATE, assets.chat_template)] if assets.chat_template else []),
    ]


def _tokens(tokenizer: Tokenizer, n_rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of each row of the embedding."""
    tokens = [UNUSED_TOKEN.format(i=i) for i in range(n_rows)]
    types = [TokenType.UNUSED] * n_rows
    for text, i in tokenizer.vocab.items():
        tokens[i], types[i] = text, TokenType.NORMAL
    for token in tokenizer.added_tokens:
        tokens[token["id"]], types[token["id"]] = added_token(token)
    return tokens, types


def _special_ids(graph: WeightGraph, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by kind: from tokenizer_config.json, then those only config.json knows.

    Without an end-of-sequence token llama.cpp would take id 11, whatever that is: any other stop id goes before it.
    """
    added = {token["content"]: token["id"] for token in tokenizer.added_tokens}
    named = ((kind, _content(graph.assets.tokenizer_config, kind)) for kind in SPECIAL_IDS)
    ids = {kind: added[text] for kind, text in named if text in added}
    config = graph.config
    eos = next(iter(config.eos_token_ids), graph.stops.main)
    for kind, token_id in (("bos", config.bos_token_id), ("eos", eos), ("pad", config.pad_token_id)):
        if token_id is not None:
            ids.setdefault(kind, token_id)
    return ids


def turn_ends(graph: WeightGraph, tokenizer: Tokenizer) -> list[int]:
    """The stop ids that llama.cpp would go on after: not the end of a sequence, nor known to it by their text.

    A file has room for two of them.
    """
    known = {i for text, i in tokenizer.vocab.items() if text in ENDS_BY_TEXT}
    known.add(_special_ids(graph, tokenizer).get("eos", -1))
    return [i for i in graph.stop_ids if i not in known]


def stop_notes(graph: WeightGraph) -> tuple[str, ...]:
    """What of the stop ids a GGUF cannot say."""
    left = turn_ends(graph, graph.tokenizer)[len(TURN_ENDS) :] if graph.tokenizer else []
    return (f"llama.cpp does not stop at token ids {', '.join(map(str, left))}: a GGUF names three",) if left else ()


def _content(config: Mapping[str, Any], kind: str) -> str | None:
    """A special token's text."""
    return token_text(config.get(f"{kind}_token"))


def _added(graph: WeightGraph, tokenizer: Tokenizer) -> dict[str, bool]:
    """Which special tokens frame a text: as the post-processor has it, then as tokenizer_config.json says."""
    config = graph.assets.tokenizer_config
    found: dict[str, bool] = {}
    declared = tokenizer.data.get("post_processor") or {}
    for step in declared.get("processors", [declared]):
        if step.get("type") == "ByteLevel":
            found = {"bos": False, "eos": False, **found}
        elif step.get("type") == "TemplateProcessing":
            found |= _framing(step, config)
    for kind in ("bos", "eos", "sep"):
        stated = config.get(f"add_{kind}_token")
        if isinstance(stated, bool):
            found.setdefault(kind, stated)
    found.setdefault("bos", False)  # where nothing is said llama.cpp begins every text with it, and the tokenizer none
    return found


def _framing(template: Mapping[str, Any], config: Mapping[str, Any]) -> dict[str, bool]:
    """What a template puts before and after one text, and between two."""
    bos, eos, sep = (_content(config, kind) for kind in ("bos", "eos", "sep"))
    single, pair = (
        [piece.get("SpecialToken", {}).get("id") for piece in template.get(field, [])] for field in ("single", "pair")
    )
    first, last = (single[0], single[-1]) if len(single) > 1 else (None, None)
    found = {}
    if first:
        found["bos"] = bos in (None, first)
    if last:
        found["eos"] = eos in (None, last)
    texts = [i for i, special in enumerate(pair) if special is None]
    between = pair[texts[0] + 1 : texts[-1]] if texts else []
    if between:
        found["sep"] = last is None and between[0] in (sep, eos)
    return found
