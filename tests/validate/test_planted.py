"""Bugs that shipped elsewhere, planted one at a time: which gate catches each, and where the report says it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.validate.gates import Failure, Part
from lfm_convert.validate.parity import validate
from lfm_convert.validate.prompts import Prompt
from lfm_convert.validate.results import ArtifactResult, Verdict
from support.checkpoints import make_checkpoint, moe_config
from support.fake_target import make_artifact

# Bug -> (class, the first part that fails, a gate of it that does, what the report says of the place).
CAUGHT: dict[str, tuple[str, Part, str, str]] = {
    "softmax router": ("f32", Part.EXECUTION, "execution_kld_p50", "scores experts by softmax"),
    "bias folded into weights": ("f32", Part.EXECUTION, "execution_kld_p50", "expert bias is part of"),
    "scaling factor dropped": ("f32", Part.EXECUTION, "execution_kld_p50", "routed_scaling_factor is not applied"),
    "w1 and w3 swapped": ("q4", Part.WEIGHTS, "stored_row", "layer 0 ffn_"),
    "conv taps reversed when stored": ("q4", Part.WEIGHTS, "stored_row", "layer 2 conv_kernel"),
    "conv taps reversed when run": ("f32", Part.EXECUTION, "execution_kld_p50", "taps of the short convolution"),
    "rope theta 1e4": ("f32", Part.EXECUTION, "execution_kld_p50", "rope_theta is 1e4"),
    "rope interleaved": ("f32", Part.EXECUTION, "execution_kld_p50", "rope pairs neighbours"),
    "QK norm missing": ("f32", Part.EXECUTION, "execution_kld_p50", "queries and keys are not normed"),
    "wrong eps": ("f32", Part.EXECUTION, "execution_kld_p50", "norm_eps is 1e-6"),
    "stale conv state": ("q4", Part.CACHE, "cache_chunked_kld", "cache_chunked_kld"),
    "final norm skipped": ("f32", Part.EXECUTION, "execution_kld_p50", "the norm before the head is skipped"),
    "experts swapped": ("q4", Part.WEIGHTS, "stored_row", "layer 2 expert_down, expert "),
    "one tensor at two bits": ("q4", Part.WEIGHTS, "stored_row", "layer 1 attn_out"),
    "a merge missing": ("q4", Part.TOKENIZER, "texts_encoded_otherwise", "harbour"),
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A mixture that scales its experts, so that leaving the scale out shows."""
    return make_checkpoint(tmp_path_factory.mktemp("planted") / "model", moe_config(routed_scaling_factor=2.5))


@pytest.fixture(scope="module")
def text_prompts() -> tuple[Prompt, ...]:
    text = "The harbour wakes before the town does, and a keeper counts twelve crates and three hundred lines."
    return tuple(Prompt(id=f"harbour-{n}", text=text[:n]) for n in (30, 60, 90))


def _run(
    checkpoint: Path, prompts: tuple[Prompt, ...], find_target: str, folder: Path, bug: str, class_name: str
) -> ArtifactResult:
    artifact = make_artifact(folder, checkpoint, class_name=class_name, bug=bug)
    return validate([artifact], open_graph(checkpoint), prompts=prompts, threads=1, find_target=find_target).results[0]


@pytest.mark.parametrize("bug", CAUGHT)
def test_a_planted_bug_is_caught_and_located(
    bug: str,
    checkpoint: Path,
    prompts: tuple[Prompt, ...],
    text_prompts: tuple[Prompt, ...],
    fake_runtime: str,
    tmp_path: Path,
) -> None:
    class_name, part, gate, where = CAUGHT[bug]
    result = _run(checkpoint, (*prompts, *text_prompts), fake_runtime, tmp_path, bug, class_name)
    failed = [found for found in result.gates if not found.passed]
    assert (result.verdict, result.failure) == (Verdict.FAIL, Failure.BROKEN)
    assert gate in [found.name for found in failed]
    assert min(failed, key=lambda found: list(Part).index(found.part)).part is part
    assert where in result.message
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["verdicts"][part.value] == "fail"


@pytest.mark.parametrize(("bug", "class_name"), [("none", "f32"), ("four bits", "q4")])
def test_nothing_is_raised_where_nothing_is_wrong(
    bug: str, class_name: str, checkpoint: Path, prompts: tuple[Prompt, ...], fake_runtime: str, tmp_path: Path
) -> None:
    result = _run(checkpoint, prompts, fake_runtime, tmp_path, bug, class_name)
    assert [gate.sentence for gate in result.gates if not gate.passed] == []
    assert (result.verdict, result.failure) == (Verdict.PASS, None)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(20))
def test_a_sound_artifact_passes_at_every_seed(seed: int, fake_runtime: str, tmp_path: Path) -> None:
    import numpy as np

    folder = make_checkpoint(tmp_path / "model", moe_config(), seed=seed)
    rng = np.random.default_rng(seed)
    drawn = tuple(Prompt(id=f"p{n}", ids=(1, *rng.integers(14, 512, n - 1).tolist())) for n in (1, 2, 4, 30, 60, 80))
    result = _run(folder, drawn, fake_runtime, tmp_path, "none", "f32")
    assert (result.verdict, result.message) == (Verdict.PASS, "")
