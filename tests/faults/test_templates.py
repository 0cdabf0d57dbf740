"""Chat templates: special tokens, refusals, named templates, and what the written folders hold of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.pipeline import convert
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.assets import read_assets
from lfm_convert.targets.gguf.vocab import vocabulary
from lfm_convert.targets.hub_folder import base_config, common_files
from lfm_convert.validate.prompts import chats_of, encode_prompts, load_prompts
from lfm_convert.validate.suites import check_stored_ids
from support.bpe import CHAT_TEMPLATE
from support.checkpoints import dense_config, make_checkpoint
from support.refusals import refused

WITH_EOS = (
    "{{ bos_token }}{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' + m.content + eos_token }}"
    "{{ image_token }}\n{% endfor %}<|im_start|>assistant\n"
)
PICKY = (
    "{{ bos_token }}{% if tools %}{{ raise_exception('no tools') }}{% endif %}{% for m in messages %}"
    "{% if m.role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' + m.content + eos_token + '\n' }}{% endfor %}<|im_start|>assistant\n"
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_checkpoint(tmp_path / "model", dense_config())


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def encoded(graph: WeightGraph, notes: list[str]) -> dict[str, str | None]:
    found = encode_prompts(
        load_prompts(), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size, note=notes.append
    )
    return {prompt.id: prompt.text for prompt in found}


@pytest.mark.parametrize("bos", ["<|startoftext|>", {"__type": "AddedToken", "content": "<|startoftext|>"}])
def test_every_special_token_reaches_the_template_as_in_transformers(folder: Path, bos: object) -> None:
    from transformers import AutoTokenizer

    edit_json(
        folder / "tokenizer_config.json", bos_token=bos, extra_special_tokens={"image_token": "<|tool_list_end|>"}
    )
    (folder / "chat_template.jinja").write_text(WITH_EOS)
    texts = encoded(open_graph(folder), [])
    theirs = AutoTokenizer.from_pretrained(folder)
    for prompt in load_prompts():
        if prompt.messages:
            expected = theirs.apply_chat_template(list(prompt.messages), tokenize=False, add_generation_prompt=True)
            assert "<|tool_list_end|>" in expected
            assert texts[prompt.id] == expected.removeprefix("<|startoftext|>")


@pytest.mark.parametrize(
    ("fault", "left_out"),
    [
        ("{{ 1 / (messages|length - 2) }}", "chat-en-system"),
        ("{% if tools %}{{ 'abc'.index('z') }}{% endif %}", "tools-weather"),
        ("{% if tools %}{{ messages[0].content.nothing() }}{% endif %}", "tools-weather"),
        ("{% if messages[0].role == 'system' %}{{ {}|dictsort(by='x') }}{% endif %}", "chat-en-system"),
    ],
)
def test_a_template_that_fails_in_some_chats_works_in_the_others(folder: Path, fault: str, left_out: str) -> None:
    (folder / "chat_template.jinja").write_text(fault + CHAT_TEMPLATE)
    notes: list[str] = []
    texts = encoded(open_graph(folder), notes)
    assert "chat-en" in texts and left_out not in texts
    assert len(notes) == 1 and "left out, since the chat template refuses" in notes[0]


def test_an_empty_template_is_none(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text("")
    edit_json(folder / "tokenizer_config.json", chat_template="stale")
    assert read_assets(folder).chat_template is None
    (folder / "chat_template.jinja").write_text("{# nothing #}")
    with refused("chat template cannot be rendered: it writes no text"):
        encoded(open_graph(folder), [])


def test_a_file_hides_the_templates_of_tokenizer_config(folder: Path) -> None:
    """As in transformers: a list left there is of an older template."""
    edit_json(folder / "tokenizer_config.json", chat_template=[{"name": "tool_use", "template": "stale"}])
    assert read_assets(folder).named_templates == {}


def test_a_template_sees_the_variables_that_transformers_gives(folder: Path) -> None:
    from transformers import AutoTokenizer

    template = "{{ documents }}{{ tools is defined }}{{ documents is defined }}{{ enable_thinking }}<|im_end|>"
    (folder / "chat_template.jinja").write_text(template)
    theirs = AutoTokenizer.from_pretrained(folder)
    texts = encoded(open_graph(folder), [])
    assert texts["chat-en"] == theirs.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)


def test_chats_that_a_template_refuses_are_left_out_with_a_note(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(PICKY)
    notes: list[str] = []
    graph = open_graph(folder)
    texts = encoded(graph, notes)
    assert "chat-en" in texts and "chat-de" in texts and "en-harbour" in texts
    assert not {"chat-en-system", "tools-weather"} & texts.keys()
    assert {note.rpartition(": ")[2] for note in notes} == {"no tools", "System role not supported"}
    found = encode_prompts(load_prompts(), graph.tokenizer, graph.assets, vocab_size=512)
    assert {"chat-en", "chat-de"} <= set(chats_of(load_prompts(), graph.assets, found)) <= texts.keys()


@pytest.mark.parametrize("target", ["gguf", "onnx"])
def test_an_artifact_of_a_template_that_refuses_is_sound(folder: Path, target: str, tmp_path: Path) -> None:
    """llama.cpp's server renders the chats that are left as the checkpoint does, eos_token and all."""
    if target == "gguf":
        pytest.importorskip("xllamacpp", reason='pip install "lfm-convert[gguf]"')
    (folder / "chat_template.jinja").write_text(PICKY)
    quant = {"gguf": "F32", "onnx": "fp32"}[target]
    report = convert(str(folder), target=target, quant=quant, out=tmp_path / "out").report
    assert report is not None
    gates = {gate.name: gate.value for gate in report.results[0].gates}
    assert gates["chats_rendered_otherwise"] == 0 and report.exit_code == 0, report.results[0].message


def test_a_template_that_works_with_no_chat_is_refused_before_anything_is_written(folder: Path, tmp_path: Path) -> None:
    (folder / "chat_template.jinja").write_text("{{ nothing.at.all }}")
    with refused("chat template cannot be rendered: UndefinedError"):
        convert(str(folder), target="gguf", quant="Q8_0", out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


TEMPLATES = {"default": "D{{ bos_token }}", "tool_use": "T", "rag": "R"}


def as_list(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    listed = [{"name": name, "template": text} for name, text in TEMPLATES.items()]
    edit_json(folder / "tokenizer_config.json", chat_template=listed)


def as_files(folder: Path) -> None:
    (folder / "chat_template.jinja").write_text(TEMPLATES["default"])
    (folder / "additional_chat_templates").mkdir()
    for name in ("tool_use", "rag"):
        (folder / "additional_chat_templates" / f"{name}.jinja").write_text(TEMPLATES[name])


@pytest.mark.parametrize("keep", [as_list, as_files])
def test_named_templates_are_kept(folder: Path, keep: Any, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    keep(folder)
    graph = open_graph(folder)
    assert graph.assets.template_for([{}]) == "T" and graph.assets.template_for(()) == TEMPLATES["default"]
    for name, data in common_files(graph).items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    assert AutoTokenizer.from_pretrained(tmp_path).chat_template == TEMPLATES
    inline = json.loads((tmp_path / "tokenizer_config.json").read_text())["chat_template"]
    assert {each["name"]: each["template"] for each in inline} == TEMPLATES
    pairs = {pair.key: pair.value for pair in vocabulary(graph)}
    assert pairs["tokenizer.chat_template"] == TEMPLATES["default"]
    assert pairs["tokenizer.chat_template.rag"] == "R" and pairs["tokenizer.chat_template.tool_use"] == "T"
    assert set(pairs["tokenizer.chat_templates"]) == {"rag", "tool_use"}


@pytest.mark.peers
def test_a_named_template_is_written_as_gguf_py_does(folder: Path) -> None:
    gguf = pytest.importorskip("gguf")
    listed = [{"name": "default", "template": "D"}, {"name": "tool-use", "template": "T"}]
    (folder / "chat_template.jinja").unlink()
    edit_json(folder / "tokenizer_config.json", chat_template=listed)
    writer = gguf.GGUFWriter(None, "lfm2")
    writer.add_chat_template(listed)
    theirs = {key: value.value for key, value in writer.kv_data[0].items() if "chat_template" in key}
    ours = {p.key: p.value for p in vocabulary(open_graph(folder)) if "chat_template" in p.key}
    assert list(ours.items()) == list(theirs.items())


def test_the_legacy_file_is_read_and_names_are_never_paths(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()
    (folder / "chat_template.json").write_text(json.dumps({"chat_template": "legacy"}))
    assert read_assets(folder).chat_template == "legacy"
    listed = [{"name": "default", "template": "D"}, {"name": "../../evil", "template": "T"}]
    edit_json(folder / "tokenizer_config.json", chat_template=listed)
    assert not any(".." in name for name in common_files(open_graph(folder)))


def test_what_transformers_5_writes_is_normalised(folder: Path) -> None:
    edit_json(
        folder / "tokenizer_config.json",
        tokenizer_class="TokenizersBackend",
        extra_special_tokens=["<|fim_pre|>"],
        additional_special_tokens=["<|fim_mid|>"],
        eos_token={"content": "<|im_end|>", "lstrip": False},
    )
    written = json.loads(common_files(open_graph(folder))["tokenizer_config.json"])
    assert written["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert "extra_special_tokens" not in written
    assert written["additional_special_tokens"] == ["<|fim_mid|>", "<|fim_pre|>"]
    assert written["eos_token"] == "<|im_end|>" and written["chat_template"] == CHAT_TEMPLATE


def test_named_tokens_of_transformers_5_are_read_by_4(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", model_specific_special_tokens={"image": "<|fim_pre|>"})
    graph = open_graph(folder)
    written = json.loads(common_files(graph)["tokenizer_config.json"])
    assert graph.assets.special_tokens["image"] == "<|fim_pre|>"
    assert (
        written["extra_special_tokens"] == {"image": "<|fim_pre|>"} and "model_specific_special_tokens" not in written
    )


def test_a_stale_quantization_config_is_not_written(folder: Path) -> None:
    edit_json(folder / "config.json", quantization_config={"quant_method": "bitsandbytes"}, quantization={"bits": 4})
    assert not {"quantization_config", "quantization"} & base_config(open_graph(folder)).keys()


def test_another_template_is_not_the_librarys_fault(tmp_path: Path) -> None:
    """The bundled tokenizer with a template and special tokens of its own: nothing drifted."""
    from lfm_convert.convert import bundled

    for path in bundled.path("dense").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "chat_template.jinja").unlink()
    (tmp_path / "chat_template.jinja").write_text(CHAT_TEMPLATE + " ")
    graph = open_graph(tmp_path)
    found = encode_prompts(load_prompts(), graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
    check_stored_ids(found, load_prompts(), graph.tokenizer, graph.assets)


def test_calibrate_knows_the_bos_token_as_an_object_and_leaves_refused_chats_out(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edit_json(folder / "tokenizer_config.json", bos_token={"__type": "AddedToken", "content": "<|startoftext|>"})
    (folder / "chat_template.jinja").write_text(PICKY)
    chats = [[{"role": "user", "content": "Hello"}], [{"role": "system", "content": "Be brief"}]]
    lines = [json.dumps({"messages": chat}) for chat in chats]
    (tmp_path / "chats.jsonl").write_text("\n".join(lines))
    out = tmp_path / "imatrix.gguf"
    command = ["calibrate", str(folder), "--text", str(tmp_path / "chats.jsonl"), "-o", str(out), "--json"]
    assert main(command) == 0
    said = capsys.readouterr()
    graph = open_graph(folder)
    assert graph.tokenizer is not None
    text = "<|startoftext|><|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant"  # jinja drops the last line end
    assert json.loads(said.out)["tokens"] == len(graph.tokenizer.encode(text, special=False))
    assert "1 of 2 conversations are left out" in said.err and "System role not supported" in said.err
    (tmp_path / "chats.jsonl").write_text(lines[1])
    assert main([*command, "--overwrite"]) == 5
    assert "refuses every conversation" in capsys.readouterr().err
