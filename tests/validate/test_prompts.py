from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.source.assets import Assets
from lfm_convert.graph.source.tokenizer import Tokenizer
from lfm_convert.validate.prompts import EncodedPrompt, Prompt, encode_prompts, load_prompts

LANGUAGES = {"en", "ar", "zh", "fr", "de", "ja", "ko", "es"}


def _encode(graph: WeightGraph, *prompts: Prompt) -> dict[str, tuple[int, ...]]:
    enough = Prompt(id="enough", ids=(1,) * 100)
    encoded = encode_prompts([*prompts, enough], graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
    return {prompt.id: prompt.token_ids for prompt in encoded}


def test_the_shared_set_covers_what_it_promises() -> None:
    prompts = load_prompts()
    assert len(prompts) >= 32
    assert {prompt.language for prompt in prompts} == LANGUAGES
    assert {prompt.kind for prompt in prompts} >= {"text", "code", "chat", "tools", "short", "long"}
    chats = [prompt for prompt in prompts if prompt.kind == "chat"]
    assert {chat.messages[0]["role"] for chat in chats} == {"system", "user"}
    assert {prompt.language for prompt in prompts if prompt.kind == "text"} == LANGUAGES


def test_the_shared_set_crosses_the_conv_window_and_is_long_once(dense_graph: WeightGraph) -> None:
    lengths = {len(ids) for ids in _encode(dense_graph, *load_prompts()).values()}
    assert {1, 2} <= lengths and max(lengths) >= 300


def test_a_chat_starts_with_one_bos(dense_graph: WeightGraph) -> None:
    chat = Prompt(id="chat", messages=({"role": "user", "content": "hi"},))
    ids = _encode(dense_graph, chat)["chat"]
    assert ids[0] == 1 and ids.count(1) == 1
    assert dense_graph.tokenizer is not None
    assert dense_graph.tokenizer.decode(ids).startswith("<|startoftext|><|im_start|>user\nhi<|im_end|>")


def test_a_tokenizer_that_begins_with_nothing_is_given_all_of_a_chat(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """Of SmolLM2's kind: its BOS is the token that opens a turn, which the template writes and the tokenizer does not."""
    assert dense_graph.tokenizer is not None
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps({**dense_graph.tokenizer.data, "post_processor": None}))
    tokenizer = Tokenizer(path)
    assert (tokenizer.opening, dense_graph.tokenizer.opening) == ((), (1,))
    assets = replace(
        dense_graph.assets,
        chat_template="{% for m in messages %}<|im_start|>{{ m['content'] }}{% endfor %}",
        tokenizer_config={**dense_graph.assets.tokenizer_config, "bos_token": "<|im_start|>"},
    )
    chat = Prompt(id="chat", messages=({"role": "user", "content": "hi " * 200},))
    (found,) = encode_prompts([chat], tokenizer, assets, vocab_size=10**6)
    assert found.text is not None and found.is_encoded_as(tokenizer.encode(found.text))


def test_text_starts_with_one_bos(dense_graph: WeightGraph) -> None:
    ids = _encode(dense_graph, Prompt(id="text", text="hi"))["text"]
    assert ids[0] == 1 and ids.count(1) == 1


def test_chats_keep_their_own_tools(dense_graph: WeightGraph) -> None:
    message = ({"role": "user", "content": "hi"},)
    found = _encode(
        dense_graph,
        Prompt(id="a", messages=message, tools=({"name": "alpha"},)),
        Prompt(id="none", messages=message),
        Prompt(id="b", messages=message, tools=({"name": "beta"},)),
    )
    assert dense_graph.tokenizer is not None
    texts = {name: dense_graph.tokenizer.decode(ids) for name, ids in found.items()}
    assert "alpha" in texts["a"] and "beta" in texts["b"] and "beta" not in texts["a"]
    assert "List of tools" not in texts["none"]


def test_without_a_template_a_chat_is_its_contents(dense_graph: WeightGraph) -> None:
    chat = Prompt(id="chat", messages=({"role": "system", "content": "ab"}, {"role": "user", "content": "cd"}))
    many = Prompt(id="many", ids=(1,) * 100)
    encoded = encode_prompts([chat, many], dense_graph.tokenizer, Assets(), vocab_size=512)
    assert dense_graph.tokenizer is not None
    assert encoded[0].token_ids == tuple(dense_graph.tokenizer.encode("ab\ncd"))


def test_without_a_tokenizer_ids_are_needed() -> None:
    ids = Prompt(id="ids", ids=(5,) * 100)
    assert encode_prompts([ids], None, Assets(), vocab_size=6) == (EncodedPrompt("ids", (5,) * 100),)
    with pytest.raises(InputError, match=r"'text'.*no tokenizer\.json.*ids"):
        encode_prompts([ids, Prompt(id="text", text="a")], None, Assets(), vocab_size=6)


def test_ids_outside_the_vocabulary_are_refused() -> None:
    prompts = [Prompt(id="fine", ids=(5,) * 100), Prompt(id="over", ids=(1, 6))]
    with pytest.raises(InputError, match="'over' holds id 6: expected less than vocab_size 6"):
        encode_prompts(prompts, None, Assets(), vocab_size=6)


def test_too_few_positions_prove_nothing() -> None:
    with pytest.raises(UsageError, match="99 positions: expected at least 100"):
        encode_prompts([Prompt(id="p", ids=(1,) * 99)], None, Assets(), vocab_size=6)
    with pytest.raises(UsageError, match="0 prompts"):
        encode_prompts([], None, Assets(), vocab_size=6)


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("{", "Expecting"),
        ("[1]", "expected a JSON object, found list"),
        ({"id": "p"}, "expected exactly one of text, messages, ids, found none"),
        ({"id": "p", "text": "a", "ids": [1]}, "found text and ids"),
        ({"text": "a"}, "'id' must be a non-empty string"),
        ({"id": 3, "text": "a"}, "'id' must be a non-empty string"),
        ({"id": "p", "text": 3}, "'text' must be a string"),
        ({"id": "p", "text": "a", "language": 3}, "'language' must be a string"),
        ({"id": "p", "ids": []}, "'ids' must be a non-empty list"),
        ({"id": "p", "ids": [1, -1]}, "'ids' must be"),
        ({"id": "p", "ids": [True]}, "'ids' must be"),
        ({"id": "p", "messages": []}, "'messages' must be a non-empty list"),
        ({"id": "p", "messages": [{"content": "x"}]}, "with a 'role'"),
        ({"id": "p", "messages": [{"role": "user"}], "tools": {}}, "'tools' must be a list"),
        ({"id": "p", "text": "a", "tools": [{}]}, "'tools' go with 'messages'"),
        ({"id": "p", "text": "\ud800"}, "half a surrogate pair"),
        ("[" * 100_000, "recursion"),
    ],
)
def test_bad_lines_are_named(tmp_path: Path, line: Any, sentence: str) -> None:
    path = tmp_path / "mine.jsonl"
    bad = line if isinstance(line, str) else json.dumps(line)
    path.write_text('{"id": "good", "text": "a"}\n\n' + bad + "\n")
    with pytest.raises(InputError) as caught:
        load_prompts(path)
    assert str(caught.value).startswith(f"{path}: line 3: ")
    assert sentence in str(caught.value)


def test_a_repeated_id_is_named(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    path.write_text('{"id": "p", "text": "a"}\n{"id": "p", "text": "b"}\n')
    with pytest.raises(InputError, match="line 2: id 'p' is used twice"):
        load_prompts(path)


def test_an_empty_or_unreadable_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.jsonl"
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(path)
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match="cannot be read"):
        load_prompts(path)
    path.write_text("\n\n")
    with pytest.raises(UsageError, match="holds no prompt"):
        load_prompts(path)
