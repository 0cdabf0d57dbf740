"""Every family in ExecuTorch against the reference: as torch runs the module, and as the runtime runs the file.

An export takes half a minute: in the default set it is paid once, for the family that differs in most.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.blocks import Mixture
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.target import get_target
from lfm_convert.validate.mistakes import MISTAKES
from support.family_configs import small
from support.family_models import make_model
from targets.executorch.conftest import export
from targets.executorch.int8_forward import FloatExperts, Int8Activations

from .test_reference_peers import VARIANTS

pytestmark = pytest.mark.peers
pytest.importorskip("executorch", reason='pip install "lfm-convert[executorch]"')

# Of the small models, up to which the first table of a long rope holds; windows are of 9 to 12.
CONTEXT = 48
TOKENS = np.random.default_rng(15).integers(8, 600, 44).tolist()
PIECES = {"whole": [44], "steps": [1] * 16, "pieces": [10, 1, 1, 13, 9, 2, 8]}
# What a runtime may get wrong of a family, as reports call it.
WRONG = {
    "gemma-3-270m": (
        "gates go through SiLU instead of GELU",
        "embeddings are not scaled",
        "scores are scaled by the head's size",
        "windows are not kept",
    ),
    "Phi-4-mini": ("cosines and sines lack the rope's factor", "the rope is not the scaled one that the config names"),
    "Granite-3.3-2B": ("what branches add is not scaled", "scores are scaled by the head's size"),
    "Qwen3-30B-A3B": ("the router scores experts by sigmoid instead of softmax",),
}
_FUSED: tuple[str, dict[str, Any], str, dict[str, Any]] = (
    "Granite-3.1-1B-A400M",
    {"intermediate_size": 64},
    "8da4w",
    {"et_moe": "moe_ffn"},
)
EXPORTS: list[Any] = [
    ("gemma-3-270m", {}, "fp32", {}),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            *((name, {}, quant, {}) for name in ("Phi-4-mini", "Llama-3.2-1B", "SmolLM3-3B", "Granite-3.3-2B",
              "Granite-3.1-1B-A400M", "Qwen3-0.6B", "Qwen3-30B-A3B") for quant in ("fp32", "8da4w")),
            ("gemma-3-270m", {}, "8da4w", {}),
            ("Granite-4.0-1B", {"position_embedding_type": "nope"}, "8da4w", {}),
            ("Qwen3-0.6B", {"attention_bias": True, "tie_word_embeddings": False}, "8da8w", {}),
            _FUSED,
        )
    ),
]  # fmt: skip


def model(folder: Path, name: str, **fields: Any) -> WeightGraph:
    return open_graph(make_model(folder, small(name, **fields)))


def eager(graph: WeightGraph, folder: Path) -> Any:
    from support.executorch_eager import EagerModel

    return EagerModel(graph, folder, context=CONTEXT)


@pytest.mark.parametrize("variant", VARIANTS)
def test_module(variant: str, tmp_path: Path) -> None:
    """The module that is exported, each conversation from position 0: none leaves anything behind."""
    name, fields = VARIANTS[variant]
    graph = model(tmp_path / "model", name, **fields)
    module = eager(graph, tmp_path / "out")
    expected = Forward(graph).prefill([TOKENS])[0][0]
    for sizes in PIECES.values():
        ends = list(itertools.accumulate(sizes))
        pieces = [TOKENS[low:high] for low, high in itertools.pairwise([0, *ends])]
        np.testing.assert_allclose(module.logits(pieces), expected[np.array(ends) - 1], atol=1e-4)


@pytest.mark.parametrize("name", WRONG)
def test_mistakes_are_seen(name: str, tmp_path: Path) -> None:
    """The comparison above fails where either side makes one of them."""
    graph = model(tmp_path / "model", name)
    logits = eager(graph, tmp_path / "out").logits([TOKENS])[0]
    for sentence in WRONG[name]:
        (mistake,) = (each for each in MISTAKES if each.sentence == sentence)
        wrong = mistake.forward(graph)
        assert wrong is not None
        assert np.abs(wrong.prefill([TOKENS])[0][0][-1] - logits).max() > 1e-3, sentence


@pytest.mark.parametrize(("name", "fields", "quant", "options"), EXPORTS)
def test_file(name: str, fields: dict[str, Any], quant: str, options: dict[str, Any], tmp_path: Path) -> None:
    """The runtime gives what the file's weights say, of as many bytes as planned, and stops where the model does."""
    graph = model(tmp_path / "model", name, **fields)
    found = export(graph, quant, tmp_path / "out", context=CONTEXT, **options)
    assert found.predicted_bytes == pytest.approx([path.stat().st_size for path in found.artifact.files], rel=0.01)
    runner = found.target.run(found.artifact, threads=1)
    logits = runner.logits(TOKENS)
    forward = Forward if quant == "fp32" else FloatExperts if options else Int8Activations
    expected = forward(found.decoded()).prefill([TOKENS])[0][0]
    cosines = (logits * expected).sum(axis=1) / np.linalg.norm(logits, axis=1) / np.linalg.norm(expected, axis=1)
    # An activation that is rounded to 8 bits the other way, which the last bit of a sum decides, moves a row by 1e-4.
    assert cosines.min() >= (0.9999 if quant == "fp32" else 0.9995)
    if quant == "fp32":
        np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert runner.stops() == {"get_eos_ids": list(graph.stop_ids)}


def test_a_context_of_one_table(tmp_path: Path) -> None:
    graph, target = model(tmp_path, "Phi-4-mini"), get_target("executorch")
    notes = target.plan(graph, "fp32").notes
    assert notes[0].startswith("context 48;")
    assert "context at most 48 of the model's 512: longer texts turn by a table that the file does not have" in notes
    with pytest.raises(UsageError, match="--context 49: expected 2 to 48, beyond which texts turn by a table"):
        target.with_options({"context": 49}).plan(graph, "fp32")


def test_moe_ffn_takes_no_bias_beside_softmax(tmp_path: Path) -> None:
    """The operator would end the process."""
    graph = model(tmp_path, _FUSED[0], **_FUSED[1])
    biased = tuple(
        tuple(
            replace(branch, block=replace(branch.block, has_bias=True)) if isinstance(branch.block, Mixture) else branch
            for branch in branches
        )
        for branches in graph.config.layers
    )
    graph = replace(graph, config=replace(graph.config, layers=biased))
    with pytest.raises(UsageError, match="takes no bias of experts whose scores are by softmax"):
        get_target("executorch").with_options({"et_moe": "moe_ffn"}).plan(graph, "8da4w")


def test_tokenizers_with_byte_fallback(tmp_path: Path) -> None:
    """Gemma's kind: the LLM runner's tokenizer reads it, and gives the ids that its own library gives."""
    from pytorch_tokenizers import CppHFTokenizer

    tokenizer = _sentencepiece(tmp_path / "tokenizer.json")
    theirs = CppHFTokenizer()
    theirs.load(str(tmp_path / "tokenizer.json"))
    for text in ("The harbour wakes", "  two  spaces", "café ☃ snow", "line\n\nbreak", "<end_of_turn>after"):
        assert theirs.encode(text, 0, 0) == tokenizer.encode(text, add_special_tokens=False).ids


def _sentencepiece(path: Path) -> Any:
    """A tokenizer as transformers writes Gemma's: spaces as a letter, unknown letters as their bytes."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

    own, byte_tokens = ["<pad>", "<eos>", "<bos>", "<unk>", "<end_of_turn>"], [f"<0x{i:02X}>" for i in range(256)]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    trainer = trainers.BpeTrainer(vocab_size=320, special_tokens=own + byte_tokens, show_progress=False)
    tokenizer.train_from_iterator(["The harbour wakes before the town does. line  two"] * 3, trainer)
    content = json.loads(tokenizer.to_str())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] in own]
    path.write_text(json.dumps(content))
    return Tokenizer.from_file(str(path))
