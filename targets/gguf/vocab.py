"""The tokenizer as GGUF metadata.

llama.cpp runs byte-level BPE itself and only needs to be told which regular expression cuts the text
(`tokenizer.ggml.pre`). Its converter guesses that from a hash of the ids of a probe text, which every new
revision of a vocabulary breaks; here tokenizer.json's own expression is looked up.
Source: llama.cpp `conversion/base.py` (`get_vocab_base`, `_set_vocab_gpt2`), `gguf-py/gguf/vocab.py`,
`src/llama-vocab.cpp`.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Any

from ...convert.errors import InputError
from ...convert.model.graph import WeightGraph
from ...convert.model.tokenizer import Tokenizer
from .header import KeyValue, boolean, int32s, string, strings, uint32

# Split expression of tokenizer.json -> `tokenizer.ggml.pre`. The second is LFM2.5's: another spelling of
# the first, which cuts alike (llama.cpp #23826).
_PRE_TOKENIZERS = {
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+": "lfm2",
    r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]|\s+(?!\S)|\s": "lfm2",
}
# Special token of tokenizer_config.json -> key of its id.
_SPECIAL_IDS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}


class TokenType(enum.IntEnum):
    """`enum llama_token_type`, as far as byte-level BPE uses it."""

    NORMAL = 1
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5


def vocabulary(graph: WeightGraph, *, pre: str | None = None) -> list[KeyValue]:
    """The `tokenizer.*` pairs. Without a tokenizer: model `none`, which takes token ids only.

    `pre` is what llama.cpp calls the pre-tokenizer; without it tokenizer.json's own is recognised.

    Raises: InputError for a tokenizer that llama.cpp has no counterpart of.
    """
    tokenizer = graph.tokenizer
    if tokenizer is None:
        return [string("tokenizer.ggml.model", "none")]
    _ = tokenizer.backend  # the library refuses a malformed file, so that its structure is known from here on
    tokens, types = _tokens(tokenizer, graph.config.vocab_size)
    merges = _merges(tokenizer)
    template = graph.assets.chat_template
    return [
        string("tokenizer.ggml.model", "gpt2"),
        string("tokenizer.ggml.pre", pre or _pre_tokenizer(tokenizer)),
        strings("tokenizer.ggml.tokens", tokens),
        int32s("tokenizer.ggml.token_type", types),
        *([strings("tokenizer.ggml.merges", merges)] if merges else []),
        *(uint32(_SPECIAL_IDS[kind], token_id) for kind, token_id in _special_ids(graph, tokenizer).items()),
        *(boolean(f"tokenizer.ggml.add_{kind}_token", added) for kind, added in _added(graph, tokenizer).items()),
        *([string("tokenizer.chat_template", template)] if template else []),
    ]


def _pre_tokenizer(tokenizer: Tokenizer) -> str:
    declared = tokenizer.data.get("pre_tokenizer") or {}
    steps = declared.get("pretokenizers", [declared])
    pattern = steps[0].get("pattern", {}).get("Regex") if steps else None
    found = _PRE_TOKENIZERS.get(pattern or "")
    is_byte_level = (
        [step.get("type") for step in steps] == ["Split", "ByteLevel"]
        and (steps[0].get("behavior"), steps[0].get("invert", False)) == ("Isolated", False)
        and not steps[1].get("use_regex")
    )
    if tokenizer.data["model"].get("type") != "BPE" or not is_byte_level or found is None:
        raise InputError(
            f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: expected byte-level BPE with a split "
            f"expression of the LFM2 family, found {pattern!r}; --pre NAME names llama.cpp's, if you know it"
        )
    return found


def _tokens(tokenizer: Tokenizer, n_rows: int) -> tuple[list[str], list[TokenType]]:
    """Text and type of each row of the embedding."""
    tokens = [f"[PAD{i}]" for i in range(n_rows)]
    types = [TokenType.UNUSED] * n_rows
    for text, i in tokenizer.vocab.items():
        tokens[i], types[i] = text, TokenType.NORMAL
    for token in tokenizer.added_tokens:
        text = token["content"]
        # Some checkpoints leave "special" out for tokens that are: these look like it.
        is_control = token.get("special") or (text.startswith("<|") and text.endswith("|>"))
        types[token["id"]] = TokenType.CONTROL if is_control else TokenType.USER_DEFINED
    return tokens, types


def _merges(tokenizer: Tokenizer) -> list[str]:
    """`left right` each; tokenizer.json has them as such, or as pairs in which a space is possible."""
    merges = tokenizer.data["model"].get("merges") or []
    return [m if isinstance(m, str) else " ".join(part.replace(" ", "Ġ") for part in m) for m in merges]


def _special_ids(graph: WeightGraph, tokenizer: Tokenizer) -> dict[str, int]:
    """Ids by kind: from tokenizer_config.json, then those only config.json knows."""
    added = {token["content"]: token["id"] for token in tokenizer.added_tokens}
    named = ((kind, _content(graph.assets.tokenizer_config, kind)) for kind in _SPECIAL_IDS)
    ids = {kind: added[text] for kind, text in named if text in added}
    config = graph.config
    eos = next(iter(config.eos_token_ids), None)
    for kind, token_id in (("bos", config.bos_token_id), ("eos", eos), ("pad", config.pad_token_id)):
        if token_id is not None:
            ids.setdefault(kind, token_id)
    return ids


def _content(config: Mapping[str, Any], kind: str) -> str | None:
    """A special token's text; files give it bare or as an object."""
    token = config.get(f"{kind}_token")
    text = token.get("content") if isinstance(token, dict) else token
    return text if isinstance(text, str) else None


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
