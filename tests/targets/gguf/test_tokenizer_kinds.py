"""Tokenizers of every kind that the families bring: what a GGUF says of them, and what llama.cpp makes of it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.gguf.pre_tokenizers import CUTTINGS
from lfm_convert.targets.gguf.runner import LlamaRunner
from lfm_convert.targets.gguf.source import open_source
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.gguf.token_types import TokenType
from lfm_convert.targets.gguf.vocab import text_notes, vocabulary
from lfm_convert.validate.prompts import added_tokens_text
from support.checkpoints import dense_config, make_checkpoint
from support.llama_cpp import convert
from support.refusals import refused
from support.tokenizer_kinds import BYTE_KINDS, KINDS, LOOSE_MARKS, n_ids, texts, write_kind

PAD_ROWS = 6
# What llama.cpp is known, and said in a note, to cut otherwise.
MARKED = ("नमस्ते",)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Any:
    """A checkpoint with the tokenizer of a kind, and more rows than it has ids."""

    def make(name: str, **options: Any) -> Path:
        folder = tmp_path / f"{name}-{len(list(tmp_path.iterdir()))}"
        make_checkpoint(folder, dense_config(vocab_size=n_ids(name) + PAD_ROWS), tokenizer=False)
        write_kind(folder, name, **options)
        return folder

    return make


def edited(folder: Path, **changes: Any) -> WeightGraph:
    """The graph with fields of its tokenizer.json replaced; those of the model are called `model_…`."""
    path = folder / "tokenizer.json"
    made = json.loads(path.read_text())
    own = {name: value for name, value in changes.items() if not name.startswith("model_")}
    model = {name.removeprefix("model_"): value for name, value in changes.items() if name not in own}
    path.write_text(json.dumps({**made, **own, "model": {**made["model"], **model}}))
    return open_graph(folder)


def pairs(graph: WeightGraph, **options: Any) -> dict[str, Any]:
    return {pair.key.removeprefix("tokenizer.ggml."): pair.value for pair in vocabulary(graph, **options)}


@contextmanager
def running(graph: WeightGraph, write_quant: Any, **options: Any) -> Iterator[tuple[LlamaRunner, Path]]:
    artifact = write_quant(graph, "Q8_0", **options)
    llama = TARGET.run(artifact, threads=1)
    assert isinstance(llama, LlamaRunner)
    try:
        yield llama, artifact.path
    finally:
        llama.close()


def model_of(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "tokenizer.json").read_text())["model"])


@pytest.mark.peers
@pytest.mark.parametrize("name", KINDS)
def test_llama_cpp_gives_the_tokenizers_ids(checkpoint: Any, write_quant: Any, name: str) -> None:
    pytest.importorskip("xllamacpp")
    graph, kind = open_graph(checkpoint(name)), KINDS[name]
    own = graph.tokenizer
    assert own is not None and pairs(graph)["pre"] == kind.pre
    table = texts([*kind.special, *kind.plain, *(f"x {token} y" for token in (*kind.special, *kind.plain))])
    others = [text for text in table if kind.pre == "gpt-4o" and any(word in text for word in MARKED)]
    with running(graph, write_quant) as (llama, path):
        wrong = [text for text in table if text not in others and llama.tokenize(text) != own.encode(text)]
        assert not wrong
        added = added_tokens_text(own)
        assert added is not None and added.text is not None and added.is_encoded_as(tuple(llama.tokenize(added.text)))
        source = open_source(path)
        assert source is not None and source.tokenizer is not None
        assert [text for text in table if source.tokenizer.encode(text) != llama.tokenize(text)] == others
        assert sorted(source.stop_ids) == llama.stops()["llama.cpp"]
    # without a BOS, a config of this family means another
    assert {"bos_token_id": None, **pairs(graph)} == {**pairs(source), "bos_token_id": pairs(graph).get("bos_token_id")}


@pytest.mark.peers
def test_what_the_notes_say_is_so(checkpoint: Any, write_quant: Any) -> None:
    """Negative control: what llama.cpp is said to do otherwise, it does."""
    pytest.importorskip("xllamacpp")
    for name, words, said in (("qwen3", LOOSE_MARKS, "form NFC"), ("phi4-mini", MARKED, "combining marks")):
        graph = open_graph(checkpoint(name))
        assert said in " ".join(text_notes(graph)) and graph.tokenizer is not None
        with running(graph, write_quant) as (llama, _):
            assert any(llama.tokenize(word) != graph.tokenizer.encode(word) for word in words), name
    with running(graph, write_quant, pre="granite-embed-multi-97m") as (llama, _):
        assert [llama.tokenize(word) for word in MARKED] == [graph.tokenizer.encode(word) for word in MARKED]
    assert text_notes(graph, pre="granite-embed-multi-97m") == text_notes(open_graph(checkpoint("llama3"))) == ()


@pytest.mark.peers
def test_a_token_that_takes_the_spaces_beside_it(checkpoint: Any, write_quant: Any) -> None:
    """Phi's do; llama.cpp's do not, which is said, and which no artifact fails for."""
    pytest.importorskip("xllamacpp")
    folder = checkpoint("phi4-mini")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    for token in settings["added_tokens_decoder"].values():
        token["rstrip"] = token["content"] in ("<|end|>", "<|user|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    graph = open_graph(folder)
    assert "llama.cpp leaves the spaces beside '<|end|>' and 1 more, which the tokenizer takes away" in text_notes(
        graph
    )
    assert graph.tokenizer is not None
    added = added_tokens_text(graph.tokenizer)
    with running(graph, write_quant) as (llama, _):
        assert llama.tokenize("<|end|> x") != graph.tokenizer.encode("<|end|> x")
        assert added is not None and added.text is not None and added.is_encoded_as(tuple(llama.tokenize(added.text)))


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_ends_where_the_template_closes_a_turn(checkpoint: Any, name: str) -> None:
    graph, kind = open_graph(checkpoint(name)), KINDS[name]
    assert graph.tokenizer is not None
    assert graph.stops.turn == graph.tokenizer.vocab[kind.end_of_turn]
    assert set(graph.stop_ids) == {graph.tokenizer.vocab[text] for text in (kind.eos, kind.end_of_turn)}


def test_rows_without_a_token_have_names(checkpoint: Any) -> None:
    for name in ("qwen3", "gemma3"):
        graph = open_graph(checkpoint(name))
        assert graph.tokenizer is not None
        found, n = pairs(graph), graph.tokenizer.n_tokens
        assert len(found["tokens"]) == len(found["token_type"]) == graph.config.vocab_size == n + PAD_ROWS
        assert found["tokens"][n:] == [f"[PAD{i}]" for i in range(n, n + PAD_ROWS)]
        assert set(found["token_type"][n:]) == {TokenType.UNUSED}
    assert set(found["scores"][n:]) == {-10_000.0}


def test_an_architecture_may_repeat_the_space_before_a_text(checkpoint: Any) -> None:
    graph = open_graph(checkpoint("granite"))
    assert "add_space_prefix" not in pairs(graph)
    assert next(iter(pairs(graph, says_prefix=True).items())) == ("add_space_prefix", False)
    assert "add_space_prefix" not in pairs(open_graph(checkpoint("llama3")), says_prefix=True)


def test_whole_pieces_are_taken_only_under_a_name_that_does_so(checkpoint: Any) -> None:
    """A token that no merges give tells the two apart; without one they are the same, and the vocabulary's name counts."""
    folder = checkpoint("smollm3")
    assert pairs(edited(folder, model_ignore_merges=True))["pre"] == "smaug-bpe"
    merges = model_of(folder)["merges"]
    assert pairs(edited(folder, model_merges=merges[:-1]))["pre"] == "llama-bpe"
    assert pairs(edited(folder, model_ignore_merges=False))["pre"] == "smaug-bpe"


def test_without_merges_of_a_name_that_takes_whole_pieces_it_is_refused(checkpoint: Any) -> None:
    folder = checkpoint("qwen3")
    merges = model_of(folder)["merges"]
    assert pairs(edited(folder, model_ignore_merges=True))["pre"] == "qwen2"
    with refused("expected byte-level BPE with merges before whole pieces"):
        pairs(edited(folder, model_merges=merges[:-1]))


def test_scores_of_merges_are_the_models(checkpoint: Any) -> None:
    """SentencePiece's own, byte for byte, without the file that has them."""
    listed, derived = pairs(open_graph(checkpoint("gemma3"))), pairs(open_graph(checkpoint("gemma3", has_model=False)))
    assert listed == derived
    assert list(map(repr, listed["scores"])) == list(map(repr, derived["scores"]))
    assert listed["model"] == "llama" and listed["add_space_prefix"] is False and listed["add_bos_token"] is True


def test_tokens_of_sentencepiece(checkpoint: Any) -> None:
    found = pairs(open_graph(checkpoint("gemma3")))
    rows = dict(zip(found["tokens"], zip(found["token_type"], found["scores"], strict=True), strict=True))
    assert rows["<bos>"] == rows["<unk>"] == rows["<unused0>"] == (TokenType.CONTROL, -1000.0)
    assert rows["  "] == rows["\n\n"] == rows["<b>"] == (TokenType.USER_DEFINED, -1000.0)
    assert rows["<0x0A>"] == (TokenType.BYTE, 0.0)
    assert rows["er"] == (TokenType.NORMAL, 0.0) and rows["he"] == (TokenType.NORMAL, -1.0)
    assert "merges" not in found


def test_the_model_of_another_vocabulary_does_not_count(checkpoint: Any) -> None:
    folder = checkpoint("gemma3")
    vocab = model_of(folder)["vocab"]
    swapped = {**vocab, "er": vocab["he"], "he": vocab["er"]}
    found = pairs(edited(folder, model_vocab=swapped))
    rows = dict(zip(found["tokens"], found["scores"], strict=True))
    assert (rows["er"], rows["he"]) == (0.0, -1.0)  # by the merges, whatever the ids
    (folder / "tokenizer.model").write_bytes(b"nonsense")
    with refused("tokenizer.model: not a model of SentencePiece"):
        pairs(open_graph(folder))


def _without(folder: Path) -> dict[str, Any]:
    return {"model_merges": [pair for pair in model_of(folder)["merges"] if pair != ["cr", "at"]]}


def _apart(folder: Path) -> dict[str, Any]:
    merges = model_of(folder)["merges"]
    made = ["".join(pair) for pair in merges]
    twice = next(pair for pair, text in zip(merges, made, strict=True) if text.isalpha() and made.count(text) > 1)
    return {"model_merges": [*(pair for pair in merges if pair != twice), twice]}


FAULTS: dict[str, tuple[Any, str]] = {
    "a pair left out": (_without, "'cr' and 'at' are not merged, though both make a token"),
    "pairs apart": (_apart, "stand apart"),
    "other texts": (
        lambda _: {"normalizer": {"type": "Lowercase"}},
        "that only writes spaces as '▁', found normalizer",
    ),
    "other cuts": (lambda _: {"pre_tokenizer": {"type": "Whitespace"}}, "and pre_tokenizer Whitespace"),
    "a byte": (
        lambda folder: {
            "model_vocab": {("<0x>" if k == "<0x01>" else k): v for k, v in model_of(folder)["vocab"].items()}
        },
        "no token for 1 of the 256 bytes, <0x01> the first",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_what_llama_cpp_would_merge_otherwise_is_refused(checkpoint: Any, name: str) -> None:
    change, sentence = FAULTS[name]
    folder = checkpoint("gemma3", has_model=False)
    with refused("tokenizer.json", "no counterpart of this tokenizer", sentence):
        pairs(edited(folder, **change(folder)))


@pytest.mark.peers
def test_a_space_before_a_text(checkpoint: Any, write_quant: Any) -> None:
    """As Llama 2's tokenizers have it."""
    pytest.importorskip("xllamacpp")
    folder = checkpoint("gemma3", has_model=False)
    own = json.loads((folder / "tokenizer.json").read_text())["normalizer"]
    steps = [{"type": "Prepend", "prepend": "▁"}, own]
    graph = edited(folder, normalizer={"type": "Sequence", "normalizers": steps})
    assert graph.tokenizer is not None and pairs(graph)["add_space_prefix"] is True
    with running(graph, write_quant) as (llama, path):
        source = open_source(path)
        assert source is not None and source.tokenizer is not None
        for text in ("the harbour", "<start_of_turn>the harbour<b>wakes", "é"):
            assert llama.tokenize(text) == graph.tokenizer.encode(text) == source.tokenizer.encode(text), text
    assert pairs(source) == pairs(graph)


def test_each_kind_is_of_another_name() -> None:
    assert len({kind.pre for kind in BYTE_KINDS.values()}) == len(BYTE_KINDS)


def test_the_page_names_every_cut() -> None:
    page = (Path(__file__).parents[3] / "docs" / "gguf.md").read_text(encoding="utf-8")
    rows = page.partition("\n## Tokenizers\n")[2].partition("\n## ")[0].splitlines()
    named = [tuple(re.findall("`([^`]+)`", row.split("|")[2])) for row in rows if row.startswith("| ")][1:]
    assert named == [tuple(each.name for each in cutting.names) for cutting in CUTTINGS]


# In the converter, whose table of hashes knows no vocabulary made here: the name, and how the architecture writes it.
_ARCHITECTURES = {
    "llama": "from conversion.llama import LlamaModel; Lfm2.origin_hf_arch, Lfm2.set_vocab = None, LlamaModel.set_vocab",
    "gemma": "from conversion.gemma import Gemma3Model; Lfm2.set_vocab = Gemma3Model.set_vocab",
    "other": "",
}
_PATCH = """
from conversion.base import TextModel
from conversion.lfm2 import LFM2Model as Lfm2
TextModel.get_vocab_base_pre = lambda self, tokenizer: {pre!r}
"""


@pytest.mark.peers
@pytest.mark.slow
@pytest.mark.parametrize(
    "name, architecture",
    [("gemma3", "gemma"), ("granite", "llama"), ("llama3", "llama"), *((name, "other") for name in BYTE_KINDS)],
)
def test_metadata_is_llama_cpps(checkpoint: Any, tmp_path: Path, name: str, architecture: str) -> None:
    """All of the tokenizer's pairs, in the order of its converter."""
    gguf = pytest.importorskip("gguf")
    pytest.importorskip("transformers")
    folder = checkpoint(name)
    patch = _PATCH.format(pre=KINDS[name].pre) + _ARCHITECTURES[architecture]
    fields = gguf.GGUFReader(convert(folder, tmp_path / "theirs.gguf", "f32", patch=patch)).fields
    theirs = {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer.")}
    found = vocabulary(open_graph(folder), says_prefix=architecture == "llama")
    assert list(theirs.items()) == [(pair.key, pair.value) for pair in found]
