"""The files beside the weights: kept verbatim, bounded, and never executed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.graph.source.assets import Assets, read_assets
from support.bpe import CHAT_TEMPLATE
from support.refusals import refused


def test_an_empty_folder_has_no_assets(tmp_path: Path) -> None:
    assert read_assets(tmp_path) == Assets()


def test_texts_are_kept_verbatim(tiny_dense: Path) -> None:
    assets = read_assets(tiny_dense)
    assert assets.chat_template == CHAT_TEMPLATE
    assert assets.generation_config["eos_token_id"] == 7
    assert assets.special_tokens_map["bos_token"] == "<|startoftext|>"


@pytest.mark.parametrize(
    ("inline", "file", "expected"),
    [
        ("inline", None, "inline"),
        ("inline", "file", "file"),
        ([{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}], None, "d"),
        ([{"name": "rag", "template": "r"}], None, None),
        ([3], None, None),
        (3, None, None),
    ],
)
def test_where_the_template_is_taken_from(
    inline: object, file: str | None, expected: str | None, tmp_path: Path
) -> None:
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": inline}))
    if file is not None:
        (tmp_path / "chat_template.jinja").write_text(file)
    assert read_assets(tmp_path).chat_template == expected


@pytest.mark.parametrize(
    ("name", "data", "part"),
    [
        ("chat_template.jinja", b"x" * (10 << 20), "10485760 bytes: expected at most 4194304"),
        ("chat_template.jinja", b"\xff\xfe", "UTF-8"),
        ("generation_config.json", b"{", "not valid JSON"),
        ("generation_config.json", b"[1]", "expected a JSON object, found list"),
        ("tokenizer_config.json", b"[" * 100_000, "not valid JSON"),
    ],
    ids=["large", "encoding", "truncated", "list", "nested"],
)
def test_files_that_are_not_what_their_name_says(name: str, data: bytes, part: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(data)
    with refused(name, part):
        read_assets(tmp_path)
