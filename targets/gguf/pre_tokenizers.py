"""What llama.cpp calls the way a text is cut before its pieces are merged: `tokenizer.ggml.pre`.

Its converter guesses the name from a hash of the ids of a probe text, which every new revision of a vocabulary breaks;
here tokenizer.json's own steps are looked up. Of names that cut alike, the first is taken under which llama.cpp also
merges as the tokenizer does, and which its converter gives to a vocabulary of this kind.

| of tokenizer.json                                         | is the expression                                    |
|-----------------------------------------------------------|------------------------------------------------------|
| Split, Isolated or (inverted) Removed                     | its own                                              |
| Digits, each for itself                                   | one digit                                            |
| ByteLevel, the last step, which puts no space before      | GPT-2's, if it cuts (`use_regex`), else none         |

Source: llama.cpp `conversion/base.py` (`get_vocab_base_pre`), `src/llama-vocab.cpp` (`llama_vocab::impl::load`,
`llm_tokenizer_bpe`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from ...graph.errors import InputError
from ...graph.source.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class PreTokenizer:
    """One of llama.cpp's names, and what it does under it beside cutting.

    `takes_whole`: a piece that is a token is taken as such before any merge; `begins`: texts begin with BOS unless the
    file says otherwise. `marks` are tokens by which a vocabulary is known to be of this name, and `is_framed` is whether
    its converter sees the tokenizer begin texts with one; neither changes what llama.cpp does. `others` are names that
    do the same.
    """

    name: str
    takes_whole: bool = False
    begins: bool = False
    marks: frozenset[str] = frozenset()
    is_framed: bool | None = None
    others: frozenset[str] = frozenset()


@dataclass(frozen=True, kw_only=True)
class Cutting:
    """A way to cut: the expressions one after the other, each in the pieces of those before it, in every spelling.

    `note` says where llama.cpp cuts otherwise.
    """

    spellings: tuple[tuple[str, ...], ...]
    names: tuple[PreTokenizer, ...]
    note: str | None = None


_DIGIT = r"\p{N}"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER, _SUFFIX = (
    r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]",
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]",
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?",
)
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_SUFFIX}|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_SUFFIX}"

CUTTINGS = (
    Cutting(
        # The second is LFM2.5's: another spelling of the first, which cuts alike (llama.cpp #23826).
        spellings=(
            (rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}",),
            (
                r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
                r"|\s*[\r\n]|\s+(?!\S)|\s",
            ),
        ),
        names=(
            PreTokenizer(name="lfm2", takes_whole=True, begins=True, marks=frozenset({"<|startoftext|>"})),
            PreTokenizer(
                name="llama-bpe",
                takes_whole=True,
                begins=True,
                is_framed=True,
                others=frozenset({"llama3", "llama-v3", "falcon3", "falcon-h1", "pixtral", "midm-2.0", "jina-v5-nano"}),
            ),
            # Llama 3's vocabulary where nothing begins a text: the same hash but for the first id.
            PreTokenizer(name="smaug-bpe", marks=frozenset({"<|begin_of_text|>"}), is_framed=False),
            PreTokenizer(name="dbrx"),
        ),
    ),
    Cutting(
        spellings=((rf"{_WORDS}|\p{{N}}|{_REST}",),),
        names=(
            PreTokenizer(
                name="qwen2",
                others=frozenset(
                    {"deepseek-r1-qwen", "kormo", "f2llmv2", "megrez", "stablelm2", "hunyuan", "solar-open", "grok-2"}
                ),
            ),
        ),
    ),
    Cutting(
        spellings=((rf"{_CASED}|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",),),
        names=(PreTokenizer(name="gpt-4o", others=frozenset({"llama4", "kanana2", "talkie", "minimax-m2"})),),
        note="llama.cpp cuts words at combining marks (--pre granite-embed-multi-97m does not) and knows the case of "
        "A to Z only",
    ),
    Cutting(
        spellings=((_DIGIT, _GPT2),),
        names=(
            PreTokenizer(name="smollm", marks=frozenset({"<reponame>", "<repo_name>"})),
            PreTokenizer(name="refact", marks=frozenset({"<reponame>"})),
            PreTokenizer(
                name="starcoder", others=frozenset({"command-r", "codeshell", "exaone", "minerva-7b", "mellum2"})
            ),
        ),
    ),
    Cutting(
        spellings=((_GPT2,),),
        names=(
            PreTokenizer(
                name="gpt-2",
                others=frozenset(
                    {"phi-2", "gigachat", "a.x-4.0", "mellum", "modern-bert", "exaone4", "mpt", "olmo", "jais"}
                    | {"trillion", "granite-docling"}
                ),
            ),
        ),
    ),
)


def pre_tokenizer(tokenizer: Tokenizer) -> str:
    """llama.cpp's name of how a tokenizer cuts. Raises: InputError for one that it has no name for."""
    cutting = _cutting_of(tokenizer)
    if cutting is None:
        _refuse(tokenizer, "a way to cut texts that it knows", _described(tokenizer))
    if tokenizer.normalizers and not tokenizer.is_composed:
        kinds = " and ".join(str(step.get("type")) for step in tokenizer.normalizers)
        _refuse(tokenizer, "texts as they are, or in form NFC", f"normalizer {kinds}")
    known = [each for each in cutting.names if _merges_alike(each, tokenizer)]
    if not known:
        _refuse(tokenizer, "merges before whole pieces", "ignore_merges, with tokens that no merges give")
    is_framed = bool(tokenizer.encode(""))
    fitting = (each for each in known if each.marks <= tokenizer.vocab.keys() and each.is_framed in (None, is_framed))
    return next(fitting, min(known, key=lambda each: bool(each.marks))).name


def cutting_notes(tokenizer: Tokenizer, *, is_named: bool) -> tuple[str, ...]:
    """What llama.cpp does otherwise than a byte-level tokenizer, which `is_named` where it is not to be recognised."""
    cutting = None if is_named else _cutting_of(tokenizer)
    notes = [cutting.note] if cutting and cutting.note else []
    if tokenizer.is_composed:
        notes.append("llama.cpp does not bring texts into form NFC")
    return tuple(f"{note}, otherwise than the tokenizer: such texts have other ids" for note in notes)


def cutting_called(name: str) -> tuple[Sequence[str], PreTokenizer] | None:
    """The expressions by which llama.cpp cuts under a name, and what else it does; None if it is not known here."""
    found = (
        (cutting.spellings[0], each)
        for cutting in CUTTINGS
        for each in cutting.names
        if name == each.name or name in each.others
    )
    return next(found, None)


def known_names() -> tuple[str, ...]:
    """Every name of the table."""
    return tuple(each.name for cutting in CUTTINGS for each in cutting.names)


def _merges_alike(known: PreTokenizer, tokenizer: Tokenizer) -> bool:
    """Whether whole pieces come out as the tokenizer's own, because it treats them so or the merges give them anyway."""
    takes_whole = bool(tokenizer.data["model"].get("ignore_merges"))
    return known.takes_whole is takes_whole or tokenizer.has_merges_of_all


def _cutting_of(tokenizer: Tokenizer) -> Cutting | None:
    found = _expressions(tokenizer)
    return None if found is None else next((each for each in CUTTINGS if found in each.spellings), None)


def _expressions(tokenizer: Tokenizer) -> tuple[str, ...] | None:
    """The expressions of a byte-level tokenizer, in order; None for steps that are no such."""
    steps = tokenizer.cuts
    last = steps[-1] if steps else {}
    if last.get("type") != "ByteLevel" or last.get("add_prefix_space") or tokenizer.data["model"].get("type") != "BPE":
        return None
    found = [_expression(step) for step in steps[:-1]] + ([_GPT2] if last.get("use_regex", True) else [])
    return None if None in found else tuple(each for each in found if each is not None)


def _expression(step: Mapping[str, Any]) -> str | None:
    if step.get("type") == "Digits":
        return _DIGIT if step.get("individual_digits") else None
    how = (step.get("behavior"), bool(step.get("invert")))
    if step.get("type") != "Split" or how not in (("Isolated", False), ("Removed", True)):
        return None
    found = step["pattern"].get("Regex")
    return found if isinstance(found, str) else None


def _described(tokenizer: Tokenizer) -> str:
    """The first expression of a tokenizer, or what it has instead."""
    pattern = next((step["pattern"].get("Regex") for step in tokenizer.cuts if step.get("type") == "Split"), None)
    if pattern is not None:
        return repr(pattern)
    kinds = [step.get("type") for step in tokenizer.cuts]
    return f"{tokenizer.data['model'].get('type')} with pre_tokenizer {kinds or None}"


def _refuse(tokenizer: Tokenizer, expected: str, found: str) -> NoReturn:
    raise InputError(
        f"{tokenizer.path}: llama.cpp has no counterpart of this tokenizer: expected byte-level BPE with {expected}, "
        f"found {found}; --pre NAME names llama.cpp's, if you know it"
    )
