"""The tokenizer's metadata: types, special ids, framing, and which pre-tokenizers are known."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.source.tokenizer import Tokenizer
from lfm_convert.targets.gguf.pre_tokenizers import CUTTINGS
from lfm_convert.targets.gguf.token_types import TokenType
from lfm_convert.targets.gguf.vocab import vocabulary
from support.refusals import refused


def pairs(graph: WeightGraph) -> dict[str, Any]:
    return {pair.key.removeprefix("tokenizer."): pair.value for pair in vocabulary(graph)}


def edited(graph: WeightGraph, folder: Path, *, vocab_size: int | None = None, **changes: Any) -> WeightGraph:
    """The graph with fields of its tokenizer.json replaced."""
    assert graph.tokenizer is not None
    path = folder / "tokenizer.json"
    path.write_text(json.dumps({**graph.tokenizer.data, **changes}))
    config = replace(graph.config, vocab_size=vocab_size or graph.config.vocab_size)
    return replace(graph, tokenizer=Tokenizer(path), config=config)


def test_tokens_and_types(dense_graph: WeightGraph, tmp_path: Path) -> None:
    assert dense_graph.tokenizer is not None
    added = [
        *dense_graph.tokenizer.added_tokens,
        {**dense_graph.tokenizer.added_tokens[0], "id": 512, "content": "<think>", "special": False},
        {**dense_graph.tokenizer.added_tokens[0], "id": 513, "content": "<|late|>", "special": False},
    ]
    found = pairs(edited(dense_graph, tmp_path, vocab_size=516, added_tokens=added))
    tokens, types = found["ggml.tokens"], found["ggml.token_type"]
    assert len(tokens) == len(types) == 516
    assert (tokens[1], types[1]) == ("<|startoftext|>", TokenType.CONTROL)
    assert (tokens[14], types[14]) == ("!", TokenType.NORMAL)
    assert (tokens[512], types[512]) == ("<think>", TokenType.USER_DEFINED)
    assert (tokens[513], types[513]) == ("<|late|>", TokenType.CONTROL)
    assert (tokens[514], types[514]) == ("[PAD514]", TokenType.UNUSED)


def test_without_a_tokenizer_there_is_no_vocabulary(dense_graph: WeightGraph) -> None:
    assert pairs(replace(dense_graph, tokenizer=None)) == {"ggml.model": "none"}


def test_ids_of_the_config_fill_what_the_tokenizer_config_leaves_out(dense_graph: WeightGraph) -> None:
    config = replace(dense_graph.config, eos_token_ids=(7, 2))
    assets = replace(dense_graph.assets, tokenizer_config={"bos_token": {"content": "<|startoftext|>"}})
    found = pairs(replace(dense_graph, config=config, assets=assets))
    assert [found[f"ggml.{kind}_token_id"] for kind in ("bos", "eos", "padding")] == [1, 7, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"normalizer": {"type": "Lowercase"}},
        {
            "pre_tokenizer": {
                "type": "Sequence",
                "pretokenizers": [
                    {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": "Isolated", "invert": False},
                    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
                ],
            }
        },
    ],
)
def test_an_unknown_pre_tokenizer_is_refused(dense_graph: WeightGraph, tmp_path: Path, changes: dict[str, Any]) -> None:
    with refused("tokenizer.json", "no counterpart"):
        pairs(edited(dense_graph, tmp_path, **changes))


def test_a_pre_tokenizer_can_be_named(dense_graph: WeightGraph, tmp_path: Path) -> None:
    step = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
    unknown = edited(dense_graph, tmp_path, pre_tokenizer=step)
    with refused("--pre NAME"):
        vocabulary(unknown)
    assert {pair.key: pair.value for pair in vocabulary(unknown, pre="gpt-2")}["tokenizer.ggml.pre"] == "gpt-2"


def test_a_malformed_tokenizer_is_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    with refused("tokenizer.json"):
        pairs(edited(dense_graph, tmp_path, pre_tokenizer="nonsense"))


@given(st.text(alphabet=st.one_of(st.sampled_from("'sStTdDmMlLvVeErR \t\r\n 019.!aé"), st.characters(codec="utf-8"))))
def test_both_spellings_of_the_expression_cut_alike(text: str) -> None:
    from tokenizers import Regex
    from tokenizers.pre_tokenizers import Split

    first, second = (Split(Regex(pattern), "isolated").pre_tokenize_str(text) for (pattern,) in CUTTINGS[0].spellings)
    assert first == second


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}


def special(text: str) -> dict[str, Any]:
    return {"SpecialToken": {"id": text, "type_id": 0}}


def template(*, before: str | None = None, after: str | None = None, between: str | None = None) -> dict[str, Any]:
    """A post-processor that frames texts with these tokens."""
    first, last, middle = ([special(text)] if text else [] for text in (before, after, between))
    a, b = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    used = [text for text in (before, after, between) if text]
    return {
        "type": "TemplateProcessing",
        "single": [*first, a, *last],
        "pair": [*first, a, *middle, b, *last],
        "special_tokens": {text: {"id": text, "ids": [1], "tokens": [text]} for text in used},
    }


BOS, EOS = "<|startoftext|>", "<|im_end|>"
FRAMINGS: dict[str, tuple[Any, dict[str, bool]]] = {
    "bytes only": (BYTE_LEVEL, {"bos": False, "eos": False}),
    "bytes, then BOS": (
        {"type": "Sequence", "processors": [BYTE_LEVEL, template(before=BOS)]},
        {"bos": True, "eos": False},
    ),
    "EOS": (template(after=EOS), {"eos": True, "bos": True}),
    "EOS between": (template(before=BOS, between=EOS), {"bos": True, "sep": True}),
    "another token": (template(before="<|im_start|>"), {"bos": False}),
    "none": (None, {"bos": True}),
}


@pytest.mark.parametrize("name", FRAMINGS)
def test_framing(dense_graph: WeightGraph, tmp_path: Path, name: str) -> None:
    """The post-processor's word comes before tokenizer_config's add_bos_token, which is true here."""
    processor, expected = FRAMINGS[name]
    found = pairs(edited(dense_graph, tmp_path, post_processor=processor))
    assert {kind: found.get(f"ggml.add_{kind}_token") for kind in expected} == expected


def test_a_tokenizer_that_adds_nothing_says_so(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """llama.cpp's own default for this pre-tokenizer is to begin every text with BOS."""
    silent = {key: v for key, v in dense_graph.assets.tokenizer_config.items() if not key.startswith("add_")}
    graph = edited(dense_graph, tmp_path, post_processor=None)
    found = pairs(replace(graph, assets=replace(graph.assets, tokenizer_config=silent)))
    assert found["ggml.add_bos_token"] is False
    assert graph.tokenizer is not None and graph.tokenizer.encode("a") == graph.tokenizer.encode("a", special=False)


@pytest.mark.peers
@pytest.mark.parametrize("processor", [template(before=BOS, between=BOS), template(before=BOS, after=EOS), None])
def test_special_tokens_are_ggufs(
    dense_graph: WeightGraph, tiny_dense: Path, tmp_path: Path, processor: dict[str, Any] | None
) -> None:
    """Merges, ids, framing and template are what gguf-py's SpecialVocab writes, in its order."""
    gguf = pytest.importorskip("gguf")
    for name in ("config.json", "tokenizer_config.json", "chat_template.jinja"):
        (tmp_path / name).write_bytes((tiny_dense / name).read_bytes())
    graph = edited(dense_graph, tmp_path, post_processor=processor)
    writer = gguf.GGUFWriter(None, "lfm2")
    gguf.SpecialVocab(tmp_path, load_merges=True).add_to_gguf(writer, quiet=True)
    theirs = {key: value.value for key, value in writer.kv_data[0].items() if key.startswith("tokenizer.")}
    ours = {pair.key: pair.value for pair in vocabulary(graph)[4:]}
    assert list(ours.items()) == list(theirs.items())
