"""LFM3 under Hugging Face's `generate`, against transformers' own model: caches of windows, and whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact
from support.checkpoints import lfm3_config, make_checkpoint

torch = pytest.importorskip("torch")
pytest.importorskip("optimum.modeling_base")

from lfm_convert.targets.onnx.optimum import ORTModelForCausalLM  # noqa: E402
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache  # noqa: E402

pytestmark = pytest.mark.peers

FULL, SLIDING = "full_attention", "sliding_attention"
LAYERS = {
    "full first": ["conv", FULL, "conv", SLIDING, SLIDING, "conv"],
    "sliding first": ["conv", SLIDING, "conv", FULL, SLIDING, "conv"],
}
IDS = torch.tensor([[1, *np.random.default_rng(2).integers(14, 512, 39).tolist()]])
CLOSE: dict[str, Any] = {"atol": 1e-4, "rtol": 0}


class Pair:
    """A random model as its ONNX folder, and in transformers."""

    def __init__(self, folder: Path, layers: str, caches: str) -> None:
        checkpoint = make_checkpoint(folder / "checkpoint", lfm3_config(layer_types=LAYERS[layers]), dtype="float32")
        graph = open_graph(checkpoint)
        target = get_target("onnx").with_options({"onnx_caches": caches})
        write_artifact(graph, target, "fp32", folder / "out")
        torch.set_num_threads(1)
        self.ours = ORTModelForCausalLM.from_pretrained(folder / "out")
        ropes = graph.config.family.hub_fields(graph.config)["rope_parameters"]
        config = AutoConfig.from_pretrained(checkpoint, rope_parameters=ropes)
        self.theirs = AutoModelForCausalLM.from_pretrained(checkpoint, config=config, dtype=torch.float32).eval()


@pytest.fixture(
    scope="module", params=[(layers, caches) for layers in LAYERS for caches in ("window", "whole")], ids=str
)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return Pair(tmp_path_factory.mktemp("optimum"), *request.param)


@pytest.mark.parametrize(
    "mode", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}], ids=["greedy", "beams"]
)
def test_generates_what_transformers_does(pair: Pair, mode: dict[str, int]) -> None:
    """Of a batch padded on the left, past the window of both rows."""
    mask = torch.ones((2, 20), dtype=torch.int64)
    mask[1, :9] = 0
    ids = torch.stack([IDS[0, :20], torch.cat([torch.zeros(9, dtype=torch.int64), IDS[0, :11]])])
    options = {"attention_mask": mask, "max_new_tokens": 24, "do_sample": False, "eos_token_id": 511, **mode}
    ours, theirs = (model.generate(ids, **options) for model in (pair.ours, pair.theirs))
    assert torch.equal(ours, theirs)


def test_a_cache_goes_on(pair: Pair) -> None:
    """In pieces that end before and after the window is full."""
    with torch.no_grad():
        expected = pair.theirs(IDS).logits
    past = None
    for low, high in ((0, 5), (5, 14), (14, 38), (38, 40)):
        output = pair.ours(IDS[:, low:high], past_key_values=past)
        torch.testing.assert_close(output.logits, expected[:, low:high], **CLOSE)
        past = output.past_key_values
        assert past.get_seq_length() == high


@pytest.mark.parametrize("n_first", [5, 15, 16, 30])
def test_each_continues_the_cache_of_the_other(n_first: int, tmp_path: Path) -> None:
    pair = Pair(tmp_path, "full first", "window")
    with torch.no_grad():
        expected = pair.theirs(IDS).logits
        for first, second in ((pair.ours, pair.theirs), (pair.theirs, pair.ours)):
            past = first(IDS[:, :n_first]).past_key_values
            for low, high in ((n_first, n_first + 3), (n_first + 3, 40)):
                logits = second(IDS[:, low:high], past_key_values=past).logits
                torch.testing.assert_close(logits, expected[:, low:high], **CLOSE)


def test_the_config_is_the_models_own(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "full first", "window")
    config = pair.ours.config
    assert (config.model_type, config.layer_types, config.sliding_window) == ("lfm3", LAYERS["full first"], 16)
    assert config.rope_parameters[FULL]["rope_type"] == "proportional"
    pair.ours.save_pretrained(tmp_path / "saved")
    again = ORTModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert torch.equal(again(IDS).logits, pair.ours(IDS).logits)


def test_a_whole_cache_is_not_one_of_a_window(tmp_path: Path) -> None:
    pair = Pair(tmp_path, "full first", "whole")
    past = DynamicCache(config=pair.theirs.config)
    with pytest.raises(UsageError, match=r"layer 3 of past_key_values is a DynamicSlidingWindowLayer: expected"):
        pair.ours(IDS, past_key_values=past)
