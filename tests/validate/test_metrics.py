from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from lfm_convert.graph.errors import InputError
from lfm_convert.validate import metrics
from lfm_convert.validate.metrics import position_kld, score_prompt, summarize
from lfm_convert.validate.prompts import EncodedPrompt

_LOGITS = st.floats(-50, 50, width=32)


def _log(*rows: list[float]) -> np.ndarray:
    return np.log(np.array(rows, np.float32))


def test_divergence_by_hand() -> None:
    # 0.5 ln(0.5/0.25) + 0.5 ln(0.5/0.75)
    found = position_kld(_log([0.5, 0.5]), _log([0.25, 0.75]))
    assert found == pytest.approx([0.5 * math.log(4 / 3)], abs=1e-7)


def test_divergence_ignores_a_shift_of_all_logits() -> None:
    reference = _log([0.2, 0.3, 0.5])
    assert position_kld(reference, reference + 3) == pytest.approx([0], abs=1e-12)


def test_divergence_is_one_sided() -> None:
    p, q = _log([0.9, 0.1]), _log([0.5, 0.5])
    assert position_kld(p, q)[0] != pytest.approx(position_kld(q, p)[0], rel=0.01)


@given(arrays(np.float32, (3, 7), elements=_LOGITS), arrays(np.float32, (3, 7), elements=_LOGITS))
def test_divergence_is_never_negative_and_zero_on_equal(reference: np.ndarray, artifact: np.ndarray) -> None:
    assert (position_kld(reference, artifact) >= 0).all()
    assert (position_kld(reference, reference) == 0).all()


def test_metrics_by_hand() -> None:
    reference = _log([0.7, 0.2, 0.1], [0.1, 0.8, 0.1])
    artifact = _log([0.2, 0.7, 0.1], [0.1, 0.8, 0.1])
    found = summarize([score_prompt(EncodedPrompt("p", (2, 0)), reference, artifact)])
    kld = 0.7 * math.log(3.5) + 0.2 * math.log(2 / 7)
    assert found.kld_max == pytest.approx(kld, rel=1e-6)
    assert found.kld_mean == pytest.approx(kld / 2, rel=1e-6)
    assert found.kld_median == pytest.approx(kld / 2, rel=1e-6)
    assert found.same_top1 == 0.5
    assert found.top5_overlap == 1.0
    # position 0 predicts token 0: the reference gives it 0.7, the artifact 0.2
    assert found.ppl_ratio == pytest.approx(3.5, rel=1e-6)
    assert found.max_abs_logit == pytest.approx(math.log(3.5), rel=1e-6)
    assert (found.n_prompts, found.n_positions, found.finite) == (1, 2, True)
    assert (found.worst[0].prompt, found.worst[0].position) == ("p", 0)
    assert math.isnan(found.kld_se)


def test_equal_logits_are_perfect() -> None:
    logits = np.random.default_rng(0).normal(size=(9, 40)).astype(np.float32)
    found = summarize([score_prompt(EncodedPrompt(name, tuple(range(9))), logits, logits) for name in "ab"])
    assert (found.kld_mean, found.kld_se, found.kld_max, found.max_abs_logit) == (0, 0, 0, 0)
    assert (found.same_top1, found.top5_overlap, found.ppl_ratio) == (1, 1, 1)


def test_a_tie_of_the_reference_is_the_same_choice() -> None:
    reference = np.array([[1, 1, 0]], np.float32)
    second = np.array([[0.9, 1, 0]], np.float32)
    third = np.array([[0, 0, 1]], np.float32)
    assert score_prompt(EncodedPrompt("p", (0,)), reference, second).same_top1.all()
    assert not score_prompt(EncodedPrompt("p", (0,)), reference, third).same_top1.any()


def test_top5_overlap_counts_members() -> None:
    reference = np.arange(10, dtype=np.float32)[None]
    artifact = np.roll(reference, 2, axis=1)  # its five largest are ids 0, 1, 7, 8, 9 less two
    score = score_prompt(EncodedPrompt("p", (0,)), reference, artifact)
    members = set(np.argsort(reference[0])[-5:]) & set(np.argsort(artifact[0])[-5:])
    assert score.top5_overlap[0] == len(members) / 5


def test_error_is_over_prompts_not_positions() -> None:
    # two prompts, each constant within: positions would claim an error of zero spread inside prompts
    near, far = _log([0.5, 0.5]), _log([0.9, 0.1])
    reference = np.repeat(near, 50, axis=0)
    ids = (0,) * 50
    scores = [
        score_prompt(EncodedPrompt("same", ids), reference, reference),
        score_prompt(EncodedPrompt("off", ids), reference, np.repeat(far, 50, axis=0)),
    ]
    kld = position_kld(near, far)[0]
    found = summarize(scores)
    # means 0 and kld: deviation kld / sqrt(2) over sqrt(2) prompts
    assert found.kld_se == pytest.approx(kld / 2, rel=1e-6)


def test_blocks_do_not_change_the_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    reference, artifact = rng.normal(size=(2, 23, 50)).astype(np.float32)
    prompt = EncodedPrompt("p", tuple(rng.integers(0, 50, 23).tolist()))
    whole = summarize([score_prompt(prompt, reference, artifact)])
    monkeypatch.setattr(metrics, "_BLOCK_ELEMENTS", 150)
    assert json.dumps(summarize([score_prompt(prompt, reference, artifact)]).to_json()) == json.dumps(whole.to_json())


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_bad_logit_is_not_finite(value: float) -> None:
    reference = np.zeros((4, 6), np.float32)
    artifact = reference.copy()
    artifact[2, 5] = value
    scores = [
        score_prompt(EncodedPrompt(name, (0,) * 4), reference, a) for name, a in (("ok", reference), ("bad", artifact))
    ]
    found = summarize(scores)
    assert not found.finite
    assert (found.worst[0].prompt, found.worst[0].position) == ("bad", 2)
    text = json.dumps(found.to_json(), allow_nan=False)
    assert json.loads(text)["kld_mean"] is None


@pytest.mark.parametrize("shape", [(3, 6), (4, 5)])
def test_other_tokens_or_vocabulary_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="cannot be compared"):
        score_prompt(EncodedPrompt("p", (0,) * 4), np.zeros((4, 6), np.float32), np.zeros(shape, np.float32))
