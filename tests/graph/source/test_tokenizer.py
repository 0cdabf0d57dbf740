"""Tokenizers: ids as the file has them, malformed files refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.source.config_file import parse_config
from lfm_convert.graph.source.tokenizer import Tokenizer, read_tokenizer
from support.bpe import SPECIAL_TOKENS, tokenizer_json, write_tokenizer
from support.checkpoints import dense_config
from support.refusals import refused

Edit = Callable[[dict[str, Any]], object]


@pytest.fixture
def tokenizer(tmp_path: Path) -> Tokenizer:
    write_tokenizer(tmp_path)
    return Tokenizer(tmp_path / "tokenizer.json")


def edited(folder: Path, edit: Edit) -> Path:
    data = json.loads(tokenizer_json())
    edit(data)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(data))
    return path


def test_special_tokens_have_their_ids(tokenizer: Tokenizer) -> None:
    assert [tokenizer.vocab[token] for token in SPECIAL_TOKENS] == list(range(14))
    assert [token["id"] for token in tokenizer.added_tokens] == list(range(14))
    assert tokenizer.n_tokens == 512 == len(tokenizer.vocab)


@pytest.mark.parametrize(
    "text", ["", "Where's the ledger? 12345", "港は\r\n\n  早い 🚢", "<|im_start|>user\n<|im_end|>", "\x00\t"]
)
def test_text_comes_back_from_its_ids(text: str, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert ids[0] == 1
    assert ids[1:] == tokenizer.encode(text, special=False)
    assert tokenizer.decode(ids[1:]) == text


def test_digits_are_split_in_threes(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode("123456") == [1, *tokenizer.encode("123")[1:], *tokenizer.encode("456")[1:]]


@pytest.mark.parametrize(("vocab_size", "fits"), [(600, True), (512, True), (511, False)])
def test_no_id_may_be_without_an_embedding_row(vocab_size: int, fits: bool, tokenizer: Tokenizer) -> None:
    config = parse_config(dense_config(vocab_size=vocab_size))
    if fits:
        assert read_tokenizer(tokenizer.path.parent, config) is not None
    else:
        with refused(tokenizer.path, "has ids up to 511", "vocab_size 511"):
            read_tokenizer(tokenizer.path.parent, config)


def test_a_folder_without_tokenizer_has_none(tmp_path: Path) -> None:
    assert read_tokenizer(tmp_path, parse_config(dense_config())) is None


def test_truncation_and_padding_left_by_a_trainer_are_ignored(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "harbour " * 40
    whole = tokenizer.encode(text)
    padding = {
        "strategy": {"Fixed": 1000}, "direction": "Right", "pad_to_multiple_of": None,
        "pad_id": 0, "pad_type_id": 0, "pad_token": "<|pad|>",
    }  # fmt: skip
    truncation = {"direction": "Right", "max_length": 8, "strategy": "LongestFirst", "stride": 0}
    path = edited(tmp_path, lambda data: data.update(truncation=truncation, padding=padding))
    assert Tokenizer(path).encode(text) == whole


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"{}", b'{"model": 3}', b"\xff\xfe", b"[" * 100_000])
def test_files_that_are_no_tokenizer_are_refused(text: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(text)
    with refused(path, "not a tokenizer.json"):
        Tokenizer(path)


@pytest.mark.parametrize(
    ("edit", "part"),
    [
        (lambda d: d["model"].update(vocab=[["a", 0.5]]), "model.vocab must be an object"),
        (lambda d: d["model"]["vocab"].update({"zz": "9"}), "token 'zz' has id '9'"),
        (lambda d: d["model"]["vocab"].update({"zz": -1}), "token 'zz' has id -1"),
        (lambda d: d["model"]["vocab"].update({"zz": True}), "token 'zz' has id True"),
        (lambda d: d["model"]["vocab"].update({"zz": 2**40}), "token 'zz' has id 1099511627776"),
        (lambda d: d["model"]["vocab"].update({"zz": 300}), "and 'zz' share id 300"),
        (lambda d: d.update(added_tokens=5), "added_tokens must be a list"),
        (lambda d: d.update(added_tokens=[5]), "added_tokens must be a list"),
        (lambda d: d.update(added_tokens=[{"id": 3}]), "added_tokens must be a list"),
        (lambda d: d["added_tokens"][0].update(id=None), "token '<|pad|>' has id None"),
    ],
)
def test_malformed_vocabularies_are_refused(edit: Edit, part: str, tmp_path: Path) -> None:
    path = edited(tmp_path, edit)
    with refused(path, part):
        read_tokenizer(tmp_path, parse_config(dense_config()))


def test_what_the_library_refuses_is_an_input_error(tmp_path: Path) -> None:
    path = edited(tmp_path, lambda data: data["model"].update(type="Nonsense"))
    with refused(path, "refused by the tokenizers library"):
        Tokenizer(path).encode("a")
