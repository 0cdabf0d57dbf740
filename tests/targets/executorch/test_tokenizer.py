"""Tokenizers of every kind that the families bring, in ExecuTorch's own library."""

from __future__ import annotations

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.tokenizer import Tokenizer
from lfm_convert.targets.executorch.target import TARGET
from lfm_convert.targets.executorch.tokenizer import check_tokenizer, followed
from support.checkpoints import dense_config, make_checkpoint
from support.tokenizer_kinds import KINDS, LOOSE_MARKS, made, n_ids, texts, write_kind

library = pytest.importorskip("pytorch_tokenizers")
pytestmark = pytest.mark.peers


def loaded(raw: bytes, folder: Path) -> Any:
    path = folder / "read.json"
    path.write_bytes(raw)
    found = library.CppHFTokenizer()
    found.load(str(path))
    return found


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def tokenizer_of(name: str, folder: Path) -> Tokenizer:
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(made(name), ensure_ascii=False), encoding="utf-8")
    return Tokenizer(path)


def test_the_runner_gives_the_tokenizers_ids(kind: str, tmp_path: Path) -> None:
    own = tokenizer_of(kind, tmp_path)
    read = followed(own)
    check_tokenizer(read)
    runner = loaded(read.raw, tmp_path)
    named = [f"x {token} y" for token in (*KINDS[kind].special, *KINDS[kind].plain)]
    table = [unicodedata.normalize("NFC", text) for text in texts(named)]
    assert [text for text in table if runner.encode(text, 0, 0) != own.encode(text, special=False)] == []
    assert [text for text in table if read.encode(text) != own.encode(text)] == []


@pytest.mark.parametrize("name, text", [("qwen3", "l'été"), ("gemma3", "a   b")])
def test_it_does_not_follow_the_file_as_it_was(name: str, text: str, tmp_path: Path) -> None:
    """Negative control: why another is written."""
    own = tokenizer_of(name, tmp_path)
    assert loaded(own.raw, tmp_path).encode(text, 0, 0) != own.encode(text, special=False)


def test_a_tokenizer_that_it_follows_stays_as_it_is(tmp_path: Path) -> None:
    own = tokenizer_of("llama3", tmp_path)
    assert followed(own) is own


def test_what_lies_beside_a_pte(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "qwen3", dense_config(vocab_size=n_ids("qwen3")), tokenizer=False)
    write_kind(folder, "qwen3")
    graph = open_graph(folder)
    written = json.loads(TARGET.shared_files(graph, ())["tokenizer.json"])
    assert graph.tokenizer is not None
    assert written == {**graph.tokenizer.data, "normalizer": None}
    assert any("form NFC" in note for note in TARGET.plan(graph, "8da4w").notes)
    runner = loaded(json.dumps(written).encode(), tmp_path)
    assert any(runner.encode(text, 0, 0) != graph.tokenizer.encode(text) for text in LOOSE_MARKS)
