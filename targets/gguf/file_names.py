"""What a model's name says: base name, size, fine-tune and version; and the file name made of them.

    BaseName-SizeLabel-FineTune-Version-Encoding-Shard.gguf

as `Sparrow-1.2B-JP-202606-Q4_0.gguf`: base name Sparrow, size 1.2B, fine-tune JP, version 202606.
Source: ggml `docs/gguf.md`, "GGUF Naming Convention"; llama.cpp `gguf-py/gguf/metadata.py`,
`get_model_id_components`, `id_to_title`, and `gguf-py/gguf/utility.py`, `naming_convention`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from ...quantize.gguf_file.header import KeyValue
from ..naming import fit_name

_VERSION = re.compile(r"(v|iter)?\d+([.]\d+)*", re.IGNORECASE)
_TYPE = re.compile(r"i?q\d(_\w)*|b?fp?(16|32)", re.IGNORECASE)
_SIZE = re.compile(r"(([A]|\d+[x])?\d+([._]\d+)?[KMBT][\d]?|small|mini|medium|large|x?xl)", re.IGNORECASE)
_FINETUNE = re.compile(r"chat|instruct|vision|lora", re.IGNORECASE)
_LOWER_KEPT = re.compile(r"v\d+(?:\.\d+)*|\d.*")
_STEM_KEYS = ("size_label", "finetune", "version")


@dataclass(frozen=True, kw_only=True)
class ModelId:
    """A name in parts, `organization/name` or `name`; None for what it does not say."""

    name: str | None = None
    organization: str | None = None
    basename: str | None = None
    finetune: str | None = None
    version: str | None = None
    size_label: str | None = None


@dataclass
class _Word:
    """A word between hyphens, and what it may be."""

    text: str
    kinds: set[str] = field(default_factory=set)


def model_id(text: str, n_parameters: int) -> ModelId:
    """The parts of a name; a size far from the model's own is a context length, and part of the fine-tune."""
    if " " in text:  # a sentence, not an id
        return ModelId(name=text)
    organization, slash, name = text.partition("/") if "/" in text else ("", "", text)
    words = [_word(i, part, n_parameters) for i, part in enumerate(part for part in name.split("-") if part)]
    _drop_sizes_in_words(words)
    _find_basename(words)
    sizes = dict.fromkeys(word.text for word in words if "size_label" in word.kinds)
    finetune = _joined(word.text for word in words if "finetune" in word.kinds)
    version = _joined(word.text for word in words if "version" in word.kinds and "basename" not in word.kinds)
    basename = _joined(word.text for word in words if "basename" in word.kinds)
    return ModelId(
        name=name,
        organization=organization if slash and not organization.startswith(".") else None,
        basename=basename if sizes or finetune or version else None,  # else too ambiguous
        finetune=finetune,
        version=version,
        size_label=_joined(sizes),
    )


def title(name: str) -> str:
    """`ABC2-1.2B-chat` as `ABC2 1.2B Chat`: lower-case words are capitalised, versions and acronyms kept."""
    words = name.replace("-", " ").split()
    return " ".join(word.title() if word.islower() and not _LOWER_KEPT.fullmatch(word) else word for word in words)


def file_stem(pairs: Iterable[KeyValue], ending: str, *, refined: bool) -> str:
    """The file's name without shard, as the converter names a file from its metadata; the `ending` is `-Q4_K_M`.

    That scales are refined, or codes tuned, is said where the convention has room for it, with the fine-tune.
    """
    general = {p.key.removeprefix("general."): p.value for p in pairs if p.key.startswith("general.")}
    parts = [str(general.get("basename") or general.get("name") or "model")]
    parts += [str(general[key]) for key in _STEM_KEYS if general.get(key)]
    return fit_name("-".join(part.strip() for part in parts), ("-refined" if refined else "") + ending)


def _word(i: int, text: str, n_parameters: int) -> _Word:
    if _VERSION.fullmatch(text):
        return _Word(text, {"version"})
    if _TYPE.fullmatch(text):
        return _Word(text.upper(), {"type"})
    if i > 0 and _SIZE.fullmatch(text):
        return _size(text.replace("_", "."), n_parameters)
    return _Word(text, {"finetune"} if i > 0 and _FINETUNE.fullmatch(text) else set())


def _size(text: str, n_parameters: int) -> _Word:
    if text[-1].isdecimal():  # bloom-7b1
        text = text[:-2] + "." + text[-1] + text[-2]
    if len(text) > 1 and text[-2].isdecimal() and text[-1] in "kmbt":
        text = text[:-1] + text[-1].upper()
    try:
        stated = float(text[:-1]) * 1000.0 ** " KMBT".find(text[-1])
    except ValueError:  # A1B, 32x1B, small
        return _Word(text, {"size_label"})
    if abs(stated - n_parameters) > 7 * n_parameters // 8:
        return _Word(text[:-1] + text[-1].lower(), {"finetune"})
    return _Word(text, {"size_label"})


def _drop_sizes_in_words(words: list[_Word]) -> None:
    """`small` is no size beside a number."""
    sized = [word for word in words if "size_label" in word.kinds]
    if any(c.isdecimal() for word in sized for c in word.text):
        for word in sized:
            if word.text.isalpha():
                word.kinds.discard("size_label")


def _find_basename(words: list[_Word]) -> None:
    """The words before the first that is a size or a fine-tune; a version at their end is the version."""
    at_start = True
    for word in words:
        if at_start and ((not word.kinds and word.text[0].isalpha()) or "version" in word.kinds):
            word.kinds.add("basename")
        else:
            at_start = False
            word.kinds |= set() if word.kinds else {"finetune"}
    for word in reversed(words):
        if not ("basename" in word.kinds and len(word.kinds) > 1):
            break
        word.kinds.remove("basename")


def _joined(texts: Iterable[str]) -> str | None:
    return "-".join(texts) or None
