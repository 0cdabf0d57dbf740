"""A small byte-level BPE tokenizer with LFM2's special tokens at LFM2's ids and LFM2's pre-tokenizer.

Source: the public LFM2 tokenizer files.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

SPECIAL_TOKENS = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
    "<|im_start|>", "<|im_end|>", "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>",
    "<|tool_call_end|>", "<|tool_response_start|>", "<|tool_response_end|>",
)  # fmt: skip
PAD, BOS, EOS = "<|pad|>", "<|startoftext|>", "<|im_end|>"
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- if tools -%}
{{- '<|im_start|>system\\nList of tools: ' ~ (tools | tojson) ~ '\\nToday\\'s date: ' ~ strftime_now('%Y-%m-%d') ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages -%}
{{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ message['content'] ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
{{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""
MAX_TOKENS = 512

_TRAINING_TEXT = """
The harbour wakes before the town does. Boats leave in the dark, and by seven the quay smells of diesel, rope and rain.
A keeper counts 12 crates, 340 lines and 1,024 hooks; she writes each number twice, because once isn't enough.
"Where's the other ledger?" asks the boy. "They've left it on the table," she says, "and we'll need it later."
def count(crates):\n    return sum(len(crate) for crate in crates)\n
Der Hafen erwacht vor der Stadt. Le port se réveille avant la ville. 港は町より先に目を覚ます。
"""


@cache
def tokenizer_json() -> str:
    """The tokenizer.json: 14 special tokens, 256 bytes, and merges up to 512 ids."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True))
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=MAX_TOKENS,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TRAINING_TEXT.splitlines(keepends=True), trainer)
    bos_id = SPECIAL_TOKENS.index(BOS)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, bos_id)]
    )
    return tokenizer.to_str(pretty=True)


def write_tokenizer(folder: Path) -> None:
    """Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json and chat_template.jinja."""
    named = {"bos_token": BOS, "eos_token": EOS, "pad_token": PAD}
    config: dict[str, Any] = {
        "add_bos_token": True,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 1_000_000,
        "tokenizer_class": "PreTrainedTokenizerFast",
        **named,
    }
    (folder / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named, indent=2), encoding="utf-8")
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
