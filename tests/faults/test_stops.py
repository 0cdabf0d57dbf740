"""Every runtime ends an answer where the checkpoint does, whichever of its files names the token."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert import bundled, convert
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.gguf.runner import LlamaRunner
from lfm_convert.targets.onnx.genai import genai_config
from lfm_convert.targets.onnx.stops import folder_stops
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import load_prompts
from lfm_convert.validate.results import Verdict
from support.bpe import CHAT_TEMPLATE
from support.checkpoints import make_checkpoint
from support.fake_target import FIND_TARGET, make_artifact

ENDOFTEXT, IM_END = 2, 7
PROMPT = "<|startoftext|><|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"

NEEDS_SYSTEM = "{% if messages[0].role != 'system' %}{{ raise_exception('a system message is needed') }}{% endif %}"
IN_PARTS = (
    "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{% for part in m.content %}{{ part.text }}{% endfor %}<|im_end|>\n{% endfor %}"
)


def edit(path: Path, **changes: Any) -> None:
    """Sets fields of a JSON file; of value `...` takes them out."""
    data = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def checkpoint(
    folder: Path, *, config: Any = ..., generation: Any = ..., eos_token: Any = ..., template: str = CHAT_TEMPLATE
) -> WeightGraph:
    """A tiny model whose files name these stop tokens; `...` is a field that is not there."""
    make_checkpoint(folder)
    edit(folder / "config.json", eos_token_id=config)
    edit(folder / "generation_config.json", eos_token_id=generation)
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        edit(folder / name, eos_token=eos_token)
    (folder / "chat_template.jinja").write_text(template)
    return open_graph(folder)


def misled(folder: Path, **generation: Any) -> WeightGraph:
    """The trained model, which ends its turns by <|im_end|>; its config.json names <|endoftext|>."""
    shutil.copytree(bundled.path("dense"), folder)
    edit(folder / "config.json", eos_token_id=ENDOFTEXT)
    edit(folder / "tokenizer_config.json", eos_token="<|endoftext|>")
    edit(folder / "special_tokens_map.json", eos_token="<|endoftext|>")
    edit(folder / "generation_config.json", eos_token_id=..., **generation)
    return open_graph(folder)


@pytest.mark.parametrize(
    ("places", "ids", "turn"),
    [
        ({"config": 2, "generation": [7, 2]}, (7, 2), 7),
        ({"config": 2}, (2, 7), 7),
        ({"eos_token": "<|endoftext|>"}, (2, 7), 7),
        ({"eos_token": {"content": "<|im_end|>"}, "template": "{{ messages[0]['content'] }}"}, (7,), None),
        ({"config": 2, "template": CHAT_TEMPLATE.replace("<|im_end|>", "<|fim_suf|>")}, (2, 5), 5),
        ({"config": 2, "template": "{{ raise_exception('no') }}"}, (2,), None),
        ({"config": 2, "template": "{{ bos_token }}{{ messages[-1].content }}"}, (2,), None),
        ({"config": 2, "template": "{{ bos_token }}always the same"}, (2,), None),
        ({"config": 2, "template": NEEDS_SYSTEM + CHAT_TEMPLATE}, (2, 7), 7),
        ({"config": 2, "template": IN_PARTS}, (2, 7), 7),
        ({"config": 300, "generation": 7}, (7,), 7),
        ({"config": 300, "template": "{{ messages[0]['content'] }}"}, (300,), None),
    ],
)  # fmt: skip
def test_the_places_that_name_stop_ids(
    places: dict[str, Any], ids: tuple[int, ...], turn: int | None, tmp_path: Path
) -> None:
    stops = checkpoint(tmp_path, **places).stops
    assert (stops.ids, stops.turn) == (ids, turn)


def test_a_leftover_of_another_vocabulary_is_said(tmp_path: Path) -> None:
    assert any(
        "eos_token_id 300 is the ordinary token" in note
        for note in checkpoint(tmp_path, config=300, generation=7).notes
    )


@pytest.mark.parametrize("value", [None, "7", 7.0, True, -1, 512, 10**400, [None, "7", 7], {"a": 1}])
def test_no_runtime_is_told_what_is_no_id(value: Any, tmp_path: Path) -> None:
    graph = checkpoint(tmp_path, generation=value)
    edit(
        tmp_path / "generation_config.json",
        bos_token_id="1",
        pad_token_id=None,
        temperature="warm",
        top_k=None,
        do_sample=1,
    )
    graph = open_graph(tmp_path)
    written = genai_config(graph, "onnx/model.onnx")
    assert graph.stop_ids == (IM_END,)
    assert written["model"]["eos_token_id"] == IM_END and written["model"]["bos_token_id"] == 1
    assert written["search"].keys() == {"max_length", "past_present_share_buffer"}
    said = [note for note in graph.notes if note.startswith("generation_config.json: eos_token_id")]
    assert len(said) == (value is not None)
    assert "eos_token_id" not in graph.assets.generation_config or graph.assets.generation_config["eos_token_id"] == [7]


def test_folders_name_every_stop_id(tmp_path: Path) -> None:
    graph = checkpoint(tmp_path / "in", config=2)
    edit(tmp_path / "in" / "config.json", pad_token_id=None)
    graph = open_graph(tmp_path / "in")
    convert(graph, target="onnx", quant="q4", out=tmp_path / "onnx", validate_after=False)
    assert folder_stops(tmp_path / "onnx") == {"genai_config.json": (2, 7), "generation_config.json": (2, 7)}
    (tmp_path / "in" / "generation_config.json").unlink()
    convert(open_graph(tmp_path / "in"), target="mlx", quant="bf16", out=tmp_path / "mlx", validate_after=False)
    (mlx,) = [path.parent for path in (tmp_path / "mlx").rglob("config.json")]
    assert json.loads((mlx / "generation_config.json").read_text())["eos_token_id"] == [2, 7]
    for folder in (tmp_path / "onnx", mlx):
        config = json.loads((folder / "config.json").read_text())
        assert config["eos_token_id"] == IM_END and config.get("pad_token_id", 0) is not None


def test_llama_cpp_stops_at_tokens_it_does_not_know_by_text(tmp_path: Path) -> None:
    template = CHAT_TEMPLATE.replace("<|im_end|>", "<|fim_suf|>")
    graph = checkpoint(tmp_path / "in", generation=[2, 12], eos_token="<|endoftext|>", template=template)
    convert(graph, target="gguf", quant="Q8_0", out=tmp_path / "out", validate_after=False)
    runner = LlamaRunner(next((tmp_path / "out").glob("*.gguf")), threads=1)
    assert set(runner.stops()["llama.cpp"]) == {2, 5, 7, 12}
    runner.close()


@pytest.mark.peers
@pytest.mark.slow
def test_text_llm_runner_ends_its_answer(tmp_path: Path) -> None:
    pytest.importorskip("executorch")
    from targets.executorch import llm_runner

    convert(misled(tmp_path / "in"), target="executorch", quant="8da4w", out=tmp_path / "out", validate_after=False)
    command = [
        sys.executable,
        "-P",
        llm_runner.__file__,
        next((tmp_path / "out").glob("*.pte")),
        tmp_path / "out" / "tokenizer.json",
        "",
        "60",
    ]
    done = subprocess.run([*map(str, command), PROMPT], capture_output=True, check=True)
    text = done.stdout.partition(b"\nPyTorchObserver")[0].strip()
    assert text.endswith(b"<|im_end|>") and text.count(b"<|im_") == 1, text


@pytest.mark.peers
def test_mlx_lm_ends_its_answer(tmp_path: Path) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    convert(misled(tmp_path / "in"), target="mlx", quant="8bit", out=tmp_path / "out", validate_after=False)
    (folder,) = [path.parent for path in (tmp_path / "out").rglob("config.json")]
    model, tokenizer = mlx_lm.load(str(folder))
    ids = tokenizer.encode(PROMPT, add_special_tokens=False)
    last = list(mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=60))[-1]
    assert last.finish_reason == "stop" and last.token == IM_END


@pytest.mark.parametrize(
    ("stops", "gate"),
    [
        ({"runtime": [7]}, None),
        ({"runtime": [7, 2]}, None),
        ({"runtime": [7], "other": [2]}, "stop_ids_missed is 1 (other: 7 <|im_end|>)"),
        ({"runtime": []}, "stop_ids_missed is 1"),
        ({"runtime": [7, 300]}, "stop_ids_of_ordinary_text is 1"),
    ],
)
def test_the_validator_asks_every_reader(
    stops: dict[str, list[int]], gate: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=":")
    artifact = make_artifact(tmp_path, bundled.path("dense"), stops=stops)
    prompts = [prompt for prompt in load_prompts() if prompt.id.startswith("chat-") and not prompt.tools][:4]
    report = validate(
        [artifact], open_graph(bundled.path("dense")), prompts=prompts, threads=1, find_target=FIND_TARGET
    )
    (result,) = report.results
    assert result.stops is not None and result.stops.chat is not None and IM_END in result.stops.chat
    if gate is None:
        assert result.verdict is Verdict.PASS and result.stops.is_ended, result.message
    else:
        assert result.verdict is Verdict.FAIL and gate in result.message
        if gate.startswith("stop_ids_missed"):
            assert "tokens_after_the_end" in result.message
