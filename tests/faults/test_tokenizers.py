"""Tokens that stand beside tokenizer.json, resized tables, and checkpoints without a tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.pipeline import convert
from lfm_convert.graph.errors import ExitCode
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.gguf.token_types import TokenType
from lfm_convert.targets.gguf.vocab import vocabulary
from lfm_convert.targets.hub_folder import common_files
from support.artifacts import write_artifact
from support.checkpoints import dense_config, make_checkpoint
from support.refusals import refused

TEXTS = ("plain text", "a <new> word", "<|late|>then<new>", "<|im_start|>user\nhi<pad2><|im_end|>")


def edit_json(path: Path, **changes: Any) -> None:
    found = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**found, **changes}))


def token(content: str, **flags: bool) -> dict[str, Any]:
    plain = dict.fromkeys(("lstrip", "rstrip", "single_word", "normalized", "special"), False)
    return {"content": content, **plain, **flags}


@pytest.fixture
def roomy(tmp_path: Path) -> Path:
    """A checkpoint with eight rows more than its tokenizer has ids."""
    return make_checkpoint(tmp_path / "roomy", dense_config(vocab_size=520))


DECLARATIONS: dict[str, tuple[dict[str, Any], dict[str, int]]] = {
    "decoder": ({"added_tokens_decoder": {"512": token("<new>"), "513": token("<|late|>", special=True)}}, {}),
    "ids elsewhere": ({"added_tokens_decoder": {"518": token("<new>")}}, {}),
    "flags": ({"added_tokens_decoder": {"8": token("<|tool_list_start|>", lstrip=True)}}, {}),
    "added_tokens.json": ({}, {"<new>": 512, "<|late|>": 513}),
    "named": ({"pad_token": "<pad2>", "extra_special_tokens": ["<new>"]}, {}),
    "model-specific": ({"extra_special_tokens": {"image_token": "<new>"}}, {}),
    "as transformers 5 saves it": ({"model_specific_special_tokens": {"image": "<new>"}}, {}),
    "two lists": ({"additional_special_tokens": ["<pad2>"], "extra_special_tokens": ["<new>"]}, {}),
}


@pytest.mark.parametrize("name", DECLARATIONS)
def test_ids_are_those_of_transformers(roomy: Path, name: str, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    settings, added = DECLARATIONS[name]
    edit_json(roomy / "tokenizer_config.json", **settings)
    if added:
        edit_json(roomy / "added_tokens.json", **added)
    graph = open_graph(roomy)
    theirs = AutoTokenizer.from_pretrained(roomy)
    assert graph.tokenizer is not None
    assert graph.tokenizer.vocab == theirs.get_vocab()
    assert [graph.tokenizer.encode(text) for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]
    for target, quant in (("onnx", "q4"), ("mlx", "8bit")):
        written = AutoTokenizer.from_pretrained(
            _folder(write_artifact(graph, target, quant, tmp_path / target).path.parent)
        )
        assert written.get_vocab() == theirs.get_vocab()
        assert [written(text)["input_ids"] for text in TEXTS] == [theirs(text)["input_ids"] for text in TEXTS]


def _folder(path: Path) -> Path:
    return path.parent if path.name == "onnx" else path


def test_a_gguf_names_tokens_of_the_decoder(roomy: Path) -> None:
    settings, _ = DECLARATIONS["decoder"]
    edit_json(roomy / "tokenizer_config.json", **settings, eos_token="<|late|>")
    found = {pair.key: pair.value for pair in vocabulary(open_graph(roomy))}
    assert found["tokenizer.ggml.tokens"][511:515][1:] == ["<new>", "<|late|>", "[PAD514]"]
    assert found["tokenizer.ggml.token_type"][512:515] == [
        TokenType.USER_DEFINED, TokenType.CONTROL, TokenType.UNUSED,
    ]  # fmt: skip
    assert found["tokenizer.ggml.eos_token_id"] == 513


def test_an_id_that_transformers_would_not_give_is_noted(roomy: Path) -> None:
    settings, _ = DECLARATIONS["ids elsewhere"]
    edit_json(roomy / "tokenizer_config.json", **settings)
    assert any("'<new>' is said to have id 518, and gets 512" in note for note in open_graph(roomy).notes)


def test_a_declared_token_without_a_row_is_left_out(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "full", dense_config(vocab_size=512))
    edit_json(folder / "tokenizer_config.json", unk_token="<unk>")
    graph = open_graph(folder)
    assert graph.tokenizer is not None and "<unk>" not in graph.tokenizer.vocab
    assert any("'<unk>' stands beside tokenizer.json only" in note for note in graph.notes)


OWN: dict[str, dict[str, int]] = {
    "with gaps": {"<new>": 515, "<|late|>": 518},
    "beyond the table": {"<new>": 512, "<|late|>": 900},
    "out of order": {"<new>": 513, "<|late|>": 512},
    "in the middle": {"Ġh": 3},
}


@pytest.mark.parametrize("name", OWN)
def test_ids_of_the_file_that_the_library_does_not_give(roomy: Path, name: str) -> None:
    """It gives an added token the model's id or the next free one; the text of every artifact has those."""
    from transformers import AutoTokenizer

    path = roomy / "tokenizer.json"
    own = json.loads(path.read_text())["added_tokens"]
    edit_json(path, added_tokens=[*own, *({"id": i, **token(text)} for text, i in OWN[name].items())])
    graph = open_graph(roomy)
    theirs = AutoTokenizer.from_pretrained(roomy)
    assert graph.tokenizer is not None and graph.tokenizer.vocab == theirs.get_vocab()
    first = next(iter(OWN[name]))
    assert any("is said to have id" in note and "the next free one" in note for note in graph.notes), first
    stored = {each["content"]: each["id"] for each in json.loads(graph.tokenizer.raw)["added_tokens"]}
    assert stored.items() <= theirs.get_vocab().items()
    tokens = {pair.key: pair.value for pair in vocabulary(graph)}["tokenizer.ggml.tokens"]
    assert {text: tokens.index(text) for text in OWN[name]}.items() <= theirs.get_vocab().items()


def test_special_tokens_that_the_library_would_put_on_others_are_refused(roomy: Path) -> None:
    path = roomy / "tokenizer.json"
    data = json.loads(path.read_text())
    for each in data["added_tokens"]:
        del data["model"]["vocab"][each["content"]]
    path.write_text(json.dumps(data))
    with refused("share id 498 (the file says 0, the library gives a token that model.vocab lacks the next free id)"):
        open_graph(roomy)


def test_a_trainers_dropout_does_not_make_a_texts_ids_random(roomy: Path) -> None:
    path = roomy / "tokenizer.json"
    data = json.loads(path.read_text())
    data["model"]["dropout"] = 0.5
    path.write_text(json.dumps(data))
    tokenizer = open_graph(roomy).tokenizer
    assert tokenizer is not None
    assert len({tuple(tokenizer.encode("The harbour wakes before the town does.")) for _ in range(20)}) == 1


def test_a_decoder_of_null_is_none(roomy: Path) -> None:
    edit_json(roomy / "tokenizer_config.json", added_tokens_decoder=None)
    assert "added_tokens_decoder" not in json.loads(common_files(open_graph(roomy))["tokenizer_config.json"])


def test_no_client_adds_a_token_for_which_there_is_no_row(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = make_checkpoint(tmp_path / "full", dense_config(vocab_size=512))
    edit_json(folder / "tokenizer_config.json", unk_token="<unk>", extra_special_tokens={"image_token": "<image>"})
    edit_json(folder / "special_tokens_map.json", unk_token="<unk>", additional_special_tokens=["<|fim_pre|>", "<x>"])
    write_artifact(open_graph(folder), "onnx", "q4", tmp_path / "out")
    written = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert len(written) == 512 and written.eos_token == "<|im_end|>"


@pytest.mark.parametrize("decoder", [[], {"x": token("a")}, {"5": "a"}, {"5": {"special": True}}])
def test_a_decoder_that_is_none_is_refused(roomy: Path, decoder: object) -> None:
    edit_json(roomy / "tokenizer_config.json", added_tokens_decoder=decoder)
    with refused("added_tokens_decoder must be an object of id to token"):
        open_graph(roomy)


@pytest.mark.parametrize("stated", [512, 560])
def test_the_table_decides_the_vocabularys_size(roomy: Path, stated: int, tmp_path: Path) -> None:
    edit_json(roomy / "config.json", vocab_size=stated)
    graph = open_graph(roomy)
    assert graph.config.vocab_size == 520
    assert f"config.json says vocab_size {stated}, the embedding has 520 rows: that is used" in graph.notes
    write_artifact(graph, "onnx", "fp32", tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["vocab_size"] == 520


def test_a_tokenizer_larger_than_the_table_is_refused_by_the_tables_size(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "small", dense_config(vocab_size=500), tokenizer=False)
    whole = make_checkpoint(tmp_path / "whole", dense_config())
    (folder / "tokenizer.json").write_bytes((whole / "tokenizer.json").read_bytes())
    edit_json(folder / "config.json", vocab_size=600)
    with refused("has ids up to 511: expected ids below vocab_size 500"):
        open_graph(folder)


def test_without_a_tokenizer_the_model_draws_its_prompts(tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path / "bare", dense_config(), tokenizer=False)
    (folder / "tokenizer.model").write_bytes(b"x")
    notes = [note for note in open_graph(folder).notes if "no tokenizer.json" in note]
    assert notes and "tokenizer.model can be saved as one" in notes[0]
    report = convert(str(folder), target="onnx", quant="fp32", out=tmp_path / "out").report
    assert report is not None and report.exit_code is ExitCode.OK
