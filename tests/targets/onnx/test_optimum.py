"""ONNX folders under Hugging Face's `generate` and `pipeline`, against transformers' own model."""

from __future__ import annotations

import importlib
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from threading import Thread
from typing import Any

import onnx
import onnxruntime
import pytest
from lfm_convert.convert import bundled, convert
from lfm_convert.graph.errors import BackendError, InputError, UsageError
from support import hub
from support.artifacts import write_artifact

torch = pytest.importorskip("torch")
pytest.importorskip("optimum.modeling_base")

from lfm_convert.targets.onnx.optimum import ORTModelForCausalLM  # noqa: E402
from lfm_convert.targets.onnx.optimum.folder import choose  # noqa: E402
from lfm_convert.targets.onnx.runner import OnnxRunner  # noqa: E402
from transformers import (  # noqa: E402
    AutoModelForCausalLM,
    AutoTokenizer,
    DynamicCache,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
    pipeline,
)

pytestmark = pytest.mark.peers

PROMPTS = ["The harbour", "The statement of the day is that", "def count(crates):\n    return"]
MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False, "repetition_penalty": 1.0},
    "sampling": {"do_sample": True, "temperature": 0.8},
    "beams": {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
}


class Pair:
    """A bundled model as its ONNX folder, and in transformers."""

    def __init__(self, kind: str, folder: Path) -> None:
        convert(str(bundled.path(kind)), target="onnx", quant="fp32,fp16,q8,q4,q4f16", out=folder, validate_after=False)
        self.folder = folder
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        torch.set_num_threads(1)
        self.ours = ORTModelForCausalLM.from_pretrained(folder, quant="fp32", session_options=options)
        self.theirs = AutoModelForCausalLM.from_pretrained(bundled.path(kind), dtype=torch.float32).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(folder, padding_side="left")

    def ids(self, text: str | list[str]) -> Any:
        return self.tokenizer(text, return_tensors="pt", padding=isinstance(text, list))


@pytest.fixture(scope="module", params=["dense", "moe"])
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(request.param, tmp_path_factory.mktemp("optimum") / request.param)


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair("dense", tmp_path_factory.mktemp("optimum") / "dense")


@pytest.mark.parametrize("mode", MODES)
def test_generates_what_transformers_does(pair: Pair, mode: str) -> None:
    """A batch padded on the left: tokens and, for beams, their scores."""
    found = []
    for model in (pair.ours, pair.theirs):
        torch.manual_seed(0)
        found.append(
            model.generate(
                **pair.ids(PROMPTS),
                **MODES[mode],
                max_new_tokens=24,
                return_dict_in_generate=True,
                output_scores=True,
            )
        )
    ours, theirs = found
    assert torch.equal(ours.sequences, theirs.sequences)
    if mode == "beams":
        torch.testing.assert_close(ours.sequences_scores, theirs.sequences_scores, atol=1e-4, rtol=0)


def test_padded_rows_are_the_prompts_alone(pair: Pair) -> None:
    batch = pair.ids(PROMPTS)
    rows = pair.ours.generate(**batch, max_new_tokens=20, do_sample=False)[:, batch.input_ids.shape[1] :]
    for prompt, row in zip(PROMPTS, rows, strict=True):
        alone = pair.ids(prompt)
        expected = pair.ours.generate(**alone, max_new_tokens=20, do_sample=False)[0, alone.input_ids.shape[1] :]
        assert torch.equal(row[: len(expected)], expected)


def test_streams_the_same_text(dense: Pair, capsys: pytest.CaptureFixture[str]) -> None:
    prompt = dense.ids(PROMPTS[0])
    options = {"max_new_tokens": 20, "do_sample": False}
    whole = dense.ours.generate(**prompt, **options)[0, prompt.input_ids.shape[1] :]
    text = dense.tokenizer.decode(whole, skip_special_tokens=True)
    capsys.readouterr()
    kept = {"skip_prompt": True, "skip_special_tokens": True}
    dense.ours.generate(**prompt, **options, streamer=TextStreamer(dense.tokenizer, **kept))
    assert capsys.readouterr().out == text + "\n"
    streamer = TextIteratorStreamer(dense.tokenizer, **kept, timeout=60)
    Thread(target=dense.ours.generate, kwargs={**prompt, **options, "streamer": streamer}).start()
    pieces = list(streamer)
    assert "".join(pieces) == text
    assert len(pieces) > 3


def test_pipeline_with_the_chat_template(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    from transformers.utils.logging import disable_propagation, enable_propagation

    messages = [{"role": "user", "content": "What is the capital of France?"}]
    enable_propagation()
    with caplog.at_level(logging.ERROR):
        answers = [
            pipeline("text-generation", model=model, tokenizer=pair.tokenizer)(
                messages, max_new_tokens=20, do_sample=False
            )
            for model in (pair.ours, pair.theirs)
        ]
    disable_propagation()
    assert answers[0] == answers[1]
    assert answers[0][0]["generated_text"][-1]["role"] == "assistant"
    assert "not supported" not in caplog.text


def test_pipeline_stays_where_the_session_is(dense: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("transformers.pipelines.base.is_torch_cuda_available", lambda: True)
    found = pipeline("text-generation", model=dense.ours, tokenizer=dense.tokenizer)
    assert found.device.type == "cpu"


def test_forward(pair: Pair) -> None:
    """Whole, in pieces, with a cache of the other's making; and what is kept of it."""
    ids = pair.ids(PROMPTS[1]).input_ids
    with torch.no_grad():
        expected = pair.theirs(ids).logits
    close = {"atol": 1e-4, "rtol": 0}
    torch.testing.assert_close(pair.ours(ids).logits, expected, **close)
    torch.testing.assert_close(pair.ours(ids, logits_to_keep=2).logits, expected[:, -2:], **close)
    for first, second in ((pair.ours, pair.ours), (pair.ours, pair.theirs), (pair.theirs, pair.ours)):
        with torch.no_grad():
            past = first(ids[:, :4]).past_key_values
            torch.testing.assert_close(second(ids[:, 4:], past_key_values=past).logits, expected[:, 4:], **close)
            assert past.get_seq_length() == ids.shape[1]
    assert pair.ours(ids, use_cache=False).past_key_values is None
    logits, _ = pair.ours(ids, return_dict=False)
    torch.testing.assert_close(logits, expected, **close)


def test_without_a_cache(dense: Pair) -> None:
    prompt = dense.ids(PROMPTS[0])
    with_cache, without = (
        dense.ours.generate(**prompt, max_new_tokens=12, do_sample=False, use_cache=use) for use in (True, False)
    )
    assert torch.equal(with_cache, without)


def test_conversation_goes_on_in_its_cache(pair: Pair) -> None:
    """A second call with the first one's cache; a long prompt in chunks."""
    options = {"max_new_tokens": 8, "do_sample": False, "return_dict_in_generate": True}
    found = []
    for model in (pair.ours, pair.theirs):
        first = model.generate(**pair.ids(PROMPTS[0]), **options)
        more = torch.cat([first.sequences, pair.ids(PROMPTS[1]).input_ids], dim=1)
        second = model.generate(more, past_key_values=first.past_key_values, **options)
        chunked = model.generate(more, prefill_chunk_size=5, **options)
        assert torch.equal(second.sequences, chunked.sequences)
        found.append(second.sequences)
    assert torch.equal(*found)


@pytest.mark.parametrize(
    ("quant", "dtype"), [("q8", "float32"), ("q4", "float32"), ("fp16", "float16"), ("q4f16", "float16")]
)
def test_quantized_tokens_are_those_of_onnxruntime(pair: Pair, quant: str, dtype: str) -> None:
    model = ORTModelForCausalLM.from_pretrained(pair.folder, quant=quant)
    assert str(model.dtype) == f"torch.{dtype}"
    prompt = pair.ids(PROMPTS[1])
    found = model.generate(**prompt, max_new_tokens=20, do_sample=False, repetition_penalty=1.0)[0].tolist()
    runner = OnnxRunner(model.path, threads=2)
    ids = prompt.input_ids[0].tolist()
    logits = runner.extend(ids)[-1]
    while len(ids) < len(found):
        ids.append(int(logits.argmax()))
        logits = runner.extend(ids[-1:])[-1]
    assert ids == found


def test_saves_and_loads_again(dense: Pair, tmp_path: Path) -> None:
    dense.ours.save_pretrained(tmp_path / "saved")
    assert sorted(p.name for p in (tmp_path / "saved" / "onnx").iterdir()) == ["model.onnx", "model.onnx_data"]
    again = ORTModelForCausalLM.from_pretrained(tmp_path / "saved")
    ids = dense.ids(PROMPTS[1]).input_ids
    assert torch.equal(again(ids).logits, dense.ours(ids).logits)
    assert again.generation_config.to_dict() == dense.ours.generation_config.to_dict()


def test_graph_that_keeps_every_logit(dense: Pair, tmp_path: Path) -> None:
    """The contract's older form has no input for the number of logits."""
    folder = Path(shutil.copytree(dense.folder, tmp_path / "old"))
    graph = onnx.load(folder / "onnx" / "model.onnx", load_external_data=False)
    (entry,) = (i for i in graph.graph.input if i.name == "num_logits_to_keep")
    graph.graph.input.remove(entry)
    graph.graph.initializer.append(onnx.helper.make_tensor(entry.name, onnx.TensorProto.INT64, [], [0]))
    onnx.save(graph, folder / "onnx" / "model.onnx")
    old = ORTModelForCausalLM.from_pretrained(folder, quant="fp32")
    ids = dense.ids(PROMPTS[1]).input_ids
    torch.testing.assert_close(old(ids, logits_to_keep=2).logits, dense.ours(ids).logits[:, -2:])


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ({}, "onnx/model_q4.onnx"),
        ({"quant": "fp32"}, "onnx/model.onnx"),
        ({"file_name": "model_fp16.onnx"}, "onnx/model_fp16.onnx"),
        ({"subfolder": "old"}, "old/model_q4.onnx"),
        ({"quant": "q8"}, "model_quantized.onnx"),
    ],
)
def test_chooses_a_graph(asked: dict[str, str], found: str) -> None:
    names = ["config.json", "onnx/model.onnx", "onnx/model_q4.onnx", "onnx/model_q4.onnx_data", "model_q4.onnx"]
    names += ["model_quantized.onnx", "old/model_q4.onnx", "onnx/model_fp16.onnx"]
    assert choose(names, "folder", **asked) == found


def test_names_what_is_there(dense: Pair, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"has no q4_mixed, model_mixed_q4\.onnx; there is fp32, fp16, q8, q4, q4f16$"):
        ORTModelForCausalLM.from_pretrained(dense.folder, quant="q4_mixed")
    with pytest.raises(InputError, match=r"has no x\.onnx; there is model\.onnx, model_fp16\.onnx"):
        ORTModelForCausalLM.from_pretrained(dense.folder, file_name="x.onnx")
    with pytest.raises(UsageError, match="q5"):
        ORTModelForCausalLM.from_pretrained(dense.folder, quant="q5")
    with pytest.raises(InputError, match="holds no ONNX graph; lfm-convert MODEL --target onnx"):
        ORTModelForCausalLM.from_pretrained(bundled.path("dense"))
    with pytest.raises(InputError, match="no such folder"):
        ORTModelForCausalLM.from_pretrained(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no graph has a name of ours; file_name= takes one of decoder\.onnx"):
        choose(["onnx/decoder.onnx"], "folder")


def test_refuses_what_it_cannot_do(dense: Pair) -> None:
    with pytest.raises(UsageError, match="provider 'NoProvider' is not in this ONNX Runtime: there is"):
        ORTModelForCausalLM.from_pretrained(dense.folder, providers=["NoProvider"])
    with pytest.raises(UsageError, match="export=True is not for this class: lfm-convert"):
        ORTModelForCausalLM.from_pretrained(dense.folder, export=True)
    with pytest.raises(UsageError, match="from_pretrained does not know use_merged"):
        ORTModelForCausalLM.from_pretrained(dense.folder, use_merged=True)
    with pytest.raises(UsageError, match="cannot move to cuda"):
        dense.ours.to("cuda")
    ids = torch.tensor([[1, 2, 3]])
    with pytest.raises(UsageError, match=r"attention_mask is \[1, 2\]: expected \[1, 3\]"):
        dense.ours(ids, attention_mask=torch.ones(1, 2))
    with pytest.raises(UsageError, match=r"layer 2 of past_key_values is a StaticLayer: expected a DynamicCache"):
        dense.ours(ids, past_key_values=StaticCache(config=dense.ours.config, max_cache_len=8))
    with pytest.raises(UsageError, match=r"past_key_values has no layer 0: expected a DynamicCache"):
        dense.ours(ids, past_key_values=DynamicCache())
    with pytest.raises(UsageError, match=r"layer 2 of past_key_values is a StaticLayer: expected a DynamicCache"):
        dense.ours.generate(ids, cache_implementation="static", max_new_tokens=4)
    with pytest.raises(TypeError, match="unexpected keyword argument 'output_attentions'"):
        dense.ours.generate(ids, output_attentions=True, return_dict_in_generate=True, max_new_tokens=4)
    with pytest.raises(ValueError, match="assisted generation is not supported with stateful models"):
        dense.ours.generate(ids, prompt_lookup_num_tokens=2, max_new_tokens=4)


@pytest.mark.parametrize(
    ("broken", "sentence"),
    [
        ("missing", r"model\.onnx_data: is missing; model\.onnx keeps weights there"),
        ("cut", r"model\.onnx_data: has 1000 bytes: expected \d+"),
        ("graph", r"model\.onnx: cannot be read as ONNX"),
        ("config", r"has no config\.json"),
        ("foreign", r"model\.onnx: input 'position_ids' is not one that lfm-convert writes"),
    ],
)
def test_broken_folder_is_one_sentence(dense: Pair, tmp_path: Path, broken: str, sentence: str) -> None:
    folder = Path(shutil.copytree(dense.folder, tmp_path / "broken"))
    graph, data = folder / "onnx" / "model.onnx", folder / "onnx" / "model.onnx_data"
    if broken == "missing":
        data.unlink()
    elif broken == "cut":
        data.write_bytes(data.read_bytes()[:1000])
    elif broken == "graph":
        graph.write_bytes(b"not a graph")
    elif broken == "config":
        (folder / "config.json").unlink()
    else:
        model = onnx.load(graph, load_external_data=False)
        model.graph.input.append(onnx.helper.make_tensor_value_info("position_ids", onnx.TensorProto.INT64, [1]))
        onnx.save(model, graph)
    with pytest.raises(InputError, match=sentence) as raised:
        ORTModelForCausalLM.from_pretrained(folder, quant="fp32")
    assert "\n" not in str(raised.value)


_FROM_HUB = """
from lfm_convert.targets.onnx.optimum import ORTModelForCausalLM
for repo, quant, offline in (
    ("LiquidAI/Nothing", "q4", False),
    ("LiquidAI/LFM2-Local-ONNX", "q4", True),
    ("LiquidAI/LFM2-Local-ONNX", "q4_mixed", False),
    ("LiquidAI/LFM2-Local-ONNX", "q4", False),
    ("LiquidAI/LFM2-Local-ONNX", "q4", True),
    ("LiquidAI/LFM2-Local-ONNX", "fp32", True),
):
    try:
        print(ORTModelForCausalLM.from_pretrained(repo, quant=quant, local_files_only=offline).path)
    except Exception as error:
        print(type(error).__name__, error)
"""


def test_from_a_hub(dense: Pair, tmp_path: Path) -> None:
    """One variant is fetched; it is found again without the hub; failures are sentences."""
    with hub.serve(dense.folder, "LiquidAI/LFM2-Local-ONNX") as endpoint:
        command = [sys.executable, "-c", _FROM_HUB]
        environment = hub.environment(tmp_path, endpoint)
        done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    nothing, not_cached, absent, path, cached, not_fetched = done.stdout.splitlines()
    assert nothing.startswith("NetworkError LiquidAI/Nothing: the hub has no such repository")
    assert not_cached.startswith("NetworkError LiquidAI/LFM2-Local-ONNX: it is not in the local cache")
    assert absent.endswith("has no q4_mixed, model_mixed_q4.onnx; there is fp32, fp16, q8, q4, q4f16")
    assert path == cached
    assert not_fetched.endswith("has no fp32, model.onnx; there is q4")
    fetched = {p.name for p in tmp_path.rglob("*.onnx*")} | {p.name for p in tmp_path.rglob("*.bin")}
    assert fetched == {"model_q4.onnx", "model_q4.onnx_data"}
    ids = dense.ids(PROMPTS[1]).input_ids
    here = ORTModelForCausalLM.from_pretrained(Path(path).parents[1])
    local = ORTModelForCausalLM.from_pretrained(dense.folder, quant="q4")
    assert torch.equal(here(ids).logits, local(ids).logits)


def test_without_optimum_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    module = sys.modules["lfm_convert.targets.onnx.optimum"]
    monkeypatch.delitem(sys.modules, "lfm_convert.targets.onnx.optimum.causal_lm")
    monkeypatch.setitem(sys.modules, "optimum.modeling_base", None)
    with pytest.raises(BackendError, match=r"needs the package 'optimum'.*pip install \"lfm-convert\[optimum\]\""):
        importlib.reload(module)


def test_every_conv_width(tmp_path: Path) -> None:
    """States wider than the family's are carried as they are."""
    from lfm_convert.graph.opening import open_graph
    from support.checkpoints import dense_config, make_checkpoint

    checkpoint = make_checkpoint(tmp_path / "checkpoint", dense_config(conv_L_cache=4))
    write_artifact(open_graph(checkpoint), "onnx", "fp32", tmp_path / "out")
    ours = ORTModelForCausalLM.from_pretrained(tmp_path / "out")
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor([[1, 20, 30, 40]])
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(ours.generate(ids, **options), theirs.generate(ids, **options))
