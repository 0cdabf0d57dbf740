"""Trains the byte-level BPE tokenizer of the bundled models, with LFM2's pre-tokenizer and special tokens.

Special tokens have LFM2's ids (0-15), the 256 byte symbols follow, and merges fill the vocabulary up to 1024.
Source of ids, pre-tokenizer and message format: the public LFM2 tokenizer files, see `facts/family.md` E3.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .dialogues import Message

if TYPE_CHECKING:
    from jinja2 import Template
    from tokenizers import Tokenizer

VOCAB_SIZE = 1024
SPECIAL_TOKENS = (
    "<|pad|>", "<|startoftext|>", "<|endoftext|>", "<|fim_pre|>", "<|fim_mid|>", "<|fim_suf|>",
    "<|im_start|>", "<|im_end|>",
    "<|tool_list_start|>", "<|tool_list_end|>", "<|tool_call_start|>", "<|tool_call_end|>",
    "<|tool_response_start|>", "<|tool_response_end|>", "<|reserved_14|>", "<|reserved_15|>",
)  # fmt: skip
PAD, BOS, EOT, IM_START, IM_END = 0, 1, 2, 6, 7

# Llama 3's split pattern, which LFM2 uses as well: digits in groups of at most three.
SPLIT_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Kept free of mutation and of non-standard filters, so that a sandboxed Jinja renders it too.
CHAT_TEMPLATE = """\
{{- bos_token -}}
{%- set start = namespace(index=0, system='') -%}
{%- if messages and messages[0]['role'] == 'system' -%}
    {%- set start.index = 1 -%}
    {%- set start.system = messages[0]['content'] -%}
{%- endif -%}
{%- if tools -%}
    {%- set listed = namespace(json='') -%}
    {%- for tool in tools -%}
        {%- set entry = tool if tool is string else tool | tojson -%}
        {%- set listed.json = listed.json ~ (', ' if not loop.first else '') ~ entry -%}
    {%- endfor -%}
    {%- set gap = '\\n' if start.system else '' -%}
    {%- set list = 'List of tools: <|tool_list_start|>[' ~ listed.json ~ ']<|tool_list_end|>' -%}
    {%- set start.system = start.system ~ gap ~ list -%}
{%- endif -%}
{%- if start.system -%}
    {{- '<|im_start|>system\\n' ~ start.system ~ '<|im_end|>\\n' -}}
{%- endif -%}
{%- for message in messages[start.index:] -%}
    {%- set content = message['content'] -%}
    {%- if message['role'] == 'tool' -%}
        {%- set content = '<|tool_response_start|>' ~ content ~ '<|tool_response_end|>' -%}
    {%- endif -%}
    {{- '<|im_start|>' ~ message['role'] ~ '\\n' ~ content ~ '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@cache
def _template() -> Template:
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    # Jinja's own filter escapes for HTML and sorts keys; transformers writes plain JSON.
    environment.filters["tojson"] = lambda value: json.dumps(value, ensure_ascii=False)
    return environment.from_string(CHAT_TEMPLATE)


def render(messages: Sequence[Message], *, tools: Sequence[dict[str, Any]] = ()) -> str:
    """Render a whole chat the way transformers does."""
    return _template().render(messages=messages, tools=tools, bos_token=SPECIAL_TOKENS[BOS])


def train(texts: Iterable[str], *, vocab_size: int = VOCAB_SIZE) -> Tokenizer:
    """Train a tokenizer on `texts`, from which special tokens are cut out first.

    Raises:
        ValueError: the texts hold too few distinct pairs to fill the vocabulary.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE(ignore_merges=True, byte_fallback=False))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT_PATTERN), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((_without_special_tokens(text) for text in texts), trainer)
    if tokenizer.get_vocab_size() != vocab_size:
        raise ValueError(f"The corpus gave {tokenizer.get_vocab_size()} tokens where {vocab_size} are needed.")
    bos = SPECIAL_TOKENS[BOS]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, BOS)]
    )
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path) -> None:
    """Write tokenizer.json, its two configuration files and the chat template into `folder`."""
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {
        "bos_token": SPECIAL_TOKENS[BOS],
        "eos_token": SPECIAL_TOKENS[IM_END],
        "pad_token": SPECIAL_TOKENS[PAD],
    }
    flags = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    config = {
        "add_bos_token": True,
        "add_eos_token": False,
        "added_tokens_decoder": {str(i): {"content": token, **flags} for i, token in enumerate(SPECIAL_TOKENS)},
        **named,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    _write_json(folder / "tokenizer_config.json", config)
    _write_json(folder / "special_tokens_map.json", named)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")


def _without_special_tokens(text: str) -> str:
    for token in SPECIAL_TOKENS:
        text = text.replace(token, "\n")
    return text


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
