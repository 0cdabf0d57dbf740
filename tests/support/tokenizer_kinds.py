"""Small tokenizers of each kind that the families bring, with their steps, special tokens and turns.

The libraries that made the published ones train them here: `tokenizers`, and SentencePiece.
Source: the public tokenizer files of Qwen3, Llama 3.2, SmolLM3, Granite 3.3 and 4, Phi-4-mini and Gemma 3.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

TEXT = """
The harbour wakes before the town does. Boats leave in the dark, and by seven the quay smells of diesel, rope and rain.
A keeper counts 12 crates, 340 lines and 1,024 hooks; she writes each number twice, because once isn't enough.
"Where's the other ledger?" asks the boy. "They've left it on the table," she says, "and we'll need it later."
def count(crates):\n    return sum(len(crate) for crate in crates)\n\n\n\tdone()
Der Hafen erwacht vor der Stadt. Le port se réveille avant la ville, l'été. 港は町より先に目を覚ます。 Đặt hàng ngày mai.
THE HARBOUR WAKES. McDonald and iPhone, JSONParser; HTTPServer2024 नमस्ते दुनिया 20260102 33333 007
"""
N_TOKENS = 640

_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
ONE_DIGIT, THREE_DIGITS = rf"{_WORDS}|\p{{N}}|{_REST}", rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"
_U, _L, _S = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]", r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
CASED = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_U}*{_L}+{_S}|[^\r\n\p{{L}}\p{{N}}]?{_U}+{_L}*{_S}|\p{{N}}{{1,3}}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _chat(before: str, after: str) -> str:
    """A template that writes each turn between two texts."""
    return (
        "{{- bos_token if bos_token is defined and bos_token else '' -}}{%- for message in messages -%}"
        f"{{{{- {before} ~ message['content'] ~ {after} -}}}}{{%- endfor -%}}"
    )


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A tokenizer: its steps, its special tokens, the first of which are ids from 0, and what ends a turn.

    `pre` is what llama.cpp calls it. `plain` are added tokens that are no special ones.
    """

    pre: str
    special: tuple[str, ...]
    end_of_turn: str
    template: str
    split: str | None = None
    is_removed: bool = False
    one_by_one: bool = False
    form: str | None = None
    takes_whole: bool = False
    bos: str | None = None
    eos: str = ""
    frames: bool = False
    plain: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


_IM = _chat("'<|im_start|>' ~ message['role'] ~ '\\n'", "'<|im_end|>\\n'")
_GRANITE = _chat("'<|start_of_role|>' ~ message['role'] ~ '<|end_of_role|>'", "'<|end_of_text|>\\n'")
_LLAMA = _chat("'<|start_header_id|>' ~ message['role'] ~ '<|end_header_id|>\\n\\n'", "'<|eot_id|>'")
_LLAMA_TOKENS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
BYTE_KINDS: dict[str, Kind] = {
    "qwen3": Kind(
        pre="qwen2",
        split=ONE_DIGIT,
        form="NFC",
        special=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|fim_prefix|>"),
        plain=("<think>", "</think>", "<tool_call>"),
        eos="<|im_end|>",
        end_of_turn="<|im_end|>",
        template=_IM,
        settings={"add_bos_token": False, "add_prefix_space": False, "pad_token": "<|endoftext|>"},
    ),
    "llama3": Kind(
        pre="llama-bpe",
        split=THREE_DIGITS,
        takes_whole=True,
        special=_LLAMA_TOKENS,
        bos="<|begin_of_text|>",
        eos="<|eot_id|>",
        end_of_turn="<|eot_id|>",
        frames=True,
        template=_LLAMA,
    ),
    "smollm3": Kind(
        pre="smaug-bpe",
        split=THREE_DIGITS,
        special=(*_LLAMA_TOKENS, "<|im_start|>", "<|im_end|>"),
        plain=("<think>", "</think>"),
        eos="<|im_end|>",
        end_of_turn="<|im_end|>",
        template=_IM,
        settings={"pad_token": "<|im_end|>"},
    ),
    "granite": Kind(
        pre="refact",
        one_by_one=True,
        special=("<|end_of_text|>", "<fim_prefix>", "<reponame>", "<|start_of_role|>", "<|end_of_role|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        end_of_turn="<|end_of_text|>",
        template=_GRANITE,
        settings={"add_prefix_space": False, "pad_token": "<|end_of_text|>", "unk_token": "<|end_of_text|>"},
    ),
    "granite4": Kind(
        pre="dbrx",
        split=THREE_DIGITS,
        special=("<|pad|>", "<|end_of_text|>", "<|start_of_role|>", "<|end_of_role|>"),
        bos="<|end_of_text|>",
        eos="<|end_of_text|>",
        end_of_turn="<|end_of_text|>",
        template=_GRANITE,
        settings={"add_bos_token": False, "add_prefix_space": False, "pad_token": "<|pad|>"},
    ),
    "phi4-mini": Kind(
        pre="gpt-4o",
        split=CASED,
        is_removed=True,
        special=("<|endoftext|>", "<|end|>", "<|user|>", "<|assistant|>", "<|system|>"),
        bos="<|endoftext|>",
        eos="<|endoftext|>",
        end_of_turn="<|end|>",
        template=_chat("'<|' ~ message['role'] ~ '|>'", "'<|end|>'"),
        settings={"add_bos_token": False, "add_eos_token": False},
    ),
}
GEMMA = Kind(
    pre="default",
    special=("<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"),
    bos="<bos>",
    eos="<eos>",
    end_of_turn="<end_of_turn>",
    frames=True,
    template=_chat("'<start_of_turn>' ~ message['role'] ~ '\\n'", "'<end_of_turn>\\n'"),
    settings={"add_bos_token": True, "add_eos_token": False, "pad_token": "<pad>", "unk_token": "<unk>"},
)
KINDS = {**BYTE_KINDS, "gemma3": GEMMA}
# What sentences seldom have, side by side with what they have.
NASTY = (
    "Hello world", " leading", "trailing  ", "a   b    c", "\n", "\n\n\nx", "a\n\n b\r\n\r\n", "\ttab\t\tx", "   \n  \n x",
    "1 12 123 1234 12345 1234567", "3.14e-10", "1,024", "2026-11-21T07:08", "it's", "IT'S", "we'Ll DON'T", "l'été", "''''",
    "'s 'S 't", "------=====", "......!!!!?", "path/to//x/", "C:\\dir", "f(x)=x**2;", "{\"a\": [1, 2]}", "HTTPServer iPhone",
    "我想在apple工作1314151天～", "港は町より先に目を覚ます。", "안녕하세요", "नमस्ते", "نهاية", "Đặt hàng", "нещо", "🚀🦙 (x) ✅",
    "😶‍🌫️", "🇩🇪🇫🇷", "ﬁ", "\u00a0nbsp", "\u3000全角", "x\u200by", "१२३", "½²", "ſ'ſ", "A" * 60, " " * 40, "ÜBER Ünder",
)  # fmt: skip
# Not in form NFC: one of them a letter and its mark.
LOOSE_MARKS = ("e\u0301te", "\u1100\u1161")


def n_ids(name: str) -> int:
    """The number of ids of a kind's tokenizer."""
    found = made(name)
    return max(*found["model"]["vocab"].values(), *(token["id"] for token in found["added_tokens"])) + 1


def made(name: str) -> dict[str, Any]:
    """A kind's tokenizer.json."""
    return json.loads(byte_level_json(name)) if name in BYTE_KINDS else gemma_json()


def write_kind(folder: Path, name: str, *, has_model: bool = True) -> None:
    """Replaces a checkpoint's tokenizer by one of a kind.

    `has_model` is whether a tokenizer.model lies beside one of SentencePiece.
    """
    kind = KINDS[name]
    found = made(name)
    named = {"bos_token": kind.bos, "eos_token": kind.eos, **kind.settings}
    (folder / "tokenizer.json").write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    decoder = {str(token["id"]): {k: v for k, v in token.items() if k != "id"} for token in found["added_tokens"]}
    settings = {**named, "added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False}
    (folder / "tokenizer_config.json").write_text(
        json.dumps({**settings, "tokenizer_class": "PreTrainedTokenizerFast"})
    )
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    (folder / "chat_template.jinja").write_text(kind.template)
    if name not in BYTE_KINDS and has_model:
        (folder / "tokenizer.model").write_bytes(gemma_model())
    _name_ids(folder, found, named)


def _name_ids(folder: Path, tokenizer: Mapping[str, Any], named: Mapping[str, Any]) -> None:
    """Special ids of config.json and generation_config.json, as the tokenizer's."""
    ids = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    special = {f"{kind}_token_id": ids.get(named.get(f"{kind}_token") or "") for kind in ("bos", "eos", "pad")}
    for name in ("config.json", "generation_config.json"):
        found = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**found, **special}))


@cache
def byte_level_json(name: str) -> str:
    """A byte-level tokenizer.json of a kind."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from tokenizers.trainers import BpeTrainer

    kind = KINDS[name]
    made = Tokenizer(models.BPE(ignore_merges=kind.takes_whole))
    if kind.form:
        made.normalizer = normalizers.NFC()
    cuts = [pre_tokenizers.Digits(individual_digits=True)] if kind.one_by_one else []
    if kind.split:
        how = {"behavior": "removed", "invert": True} if kind.is_removed else {"behavior": "isolated"}
        cuts.append(pre_tokenizers.Split(Regex(kind.split), **how))
    bytes_step = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind.split is None)
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, bytes_step])
    made.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=N_TOKENS,
        special_tokens=[AddedToken(token, special=True, normalized=False) for token in kind.special],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator(TEXT.splitlines(keepends=True), trainer)
    made.add_tokens([AddedToken(token, special=False, normalized=False) for token in kind.plain])
    steps: list[Any] = [processors.ByteLevel(trim_offsets=False)]
    if kind.frames:
        framed = processors.TemplateProcessing(
            single=f"{kind.bos} $A",
            pair=f"{kind.bos} $A {kind.bos} $B:1",
            special_tokens=[(kind.bos, made.token_to_id(str(kind.bos)))],
        )
        steps.append(framed)
    made.post_processor = processors.Sequence(steps) if kind.frames else steps[0]
    found: str = made.to_str()
    return found


@cache
def gemma_model() -> bytes:
    """A tokenizer.model: BPE with bytes, runs of spaces and newlines as symbols of their own, digits one by one."""
    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.splitlines()),
        model_writer=out,
        model_type="bpe",
        vocab_size=N_TOKENS,
        byte_fallback=True,
        character_coverage=0.995,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        pad_id=0,
        eos_id=1,
        bos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        eos_piece="<eos>",
        bos_piece="<bos>",
        unk_piece="<unk>",
        user_defined_symbols=[
            "<start_of_turn>",
            "<end_of_turn>",
            "<unused0>",
            "\n",
            "\n\n",
            "\n\n\n",
            "▁▁",
            "▁▁▁",
            "<b>",
        ],
        minloglevel=2,
    )
    return out.getvalue()


def gemma_json() -> dict[str, Any]:
    """The tokenizer.json that transformers' converter makes of the model."""
    import sentencepiece
    from transformers.convert_slow_tokenizer import generate_merges

    model = sentencepiece.SentencePieceProcessor(model_proto=gemma_model())
    size = model.GetPieceSize()
    vocab = {model.IdToPiece(i): i for i in range(size)}
    merges = generate_merges(vocab, [(text, model.GetScore(i)) for text, i in vocab.items()])
    apart = {i for i in range(size) if _stands_apart(model, i)}
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"id": "<bos>", "type_id": 0}
    pieces: list[Any] = [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}]
    second: list[Any] = [{"SpecialToken": {**bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": i, "content": text, **flags, "special": text in GEMMA.special}
            for text, i in vocab.items()
            if i in apart
        ],
        "normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
        "pre_tokenizer": {
            "type": "Split", "pattern": {"String": " "}, "behavior": "MergedWithPrevious", "invert": False,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": pieces,
            "pair": [*pieces, *second],
            "special_tokens": {"<bos>": {"id": "<bos>", "ids": [2], "tokens": ["<bos>"]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
            ],
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocab, "merges": [list(pair) for pair in merges],
        },
    }  # fmt: skip


def _stands_apart(model: Any, i: int) -> bool:
    """Whether a piece is a symbol of its own: one that was asked for, whose score is none of a merge's."""
    text = model.IdToPiece(i)
    return model.IsControl(i) or model.IsUnknown(i) or (text.startswith("<") and not model.IsByte(i)) or _is_run(text)


def _is_run(text: str) -> bool:
    return bool(text) and (set(text) == {"\n"} or (set(text) == {"▁"} and len(text) > 1))


def texts(plain: Sequence[str] = ()) -> list[str]:
    """The table of texts, and neighbours of it joined."""
    return [*NASTY, *plain, *("".join(NASTY[i : i + 3]) for i in range(0, len(NASTY), 2))]
