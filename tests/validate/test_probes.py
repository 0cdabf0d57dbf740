"""Each way of running prompts again, against runtimes in which that one way is broken."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.validate.probes import AT_ONCE, CacheCheck, check_cache
from lfm_convert.validate.prompts import EncodedPrompt
from lfm_convert.validate.selection import cache_prompts
from support.fake_target import FakeRunner

FIRST, SECOND = tuple(range(20, 37)), tuple(range(100, 140))
ALL = ["stepwise", "chunked", "interleaved", "reset", "batch_left"]


def _check(checkpoint: Path, kind: type[FakeRunner] = FakeRunner, **fault: Any) -> CacheCheck:
    prompts = (FIRST, SECOND)
    sound = FakeRunner({"checkpoint": str(checkpoint)})
    found = check_cache(kind({"checkpoint": str(checkpoint), **fault}), prompts, [sound.logits(ids) for ids in prompts])
    assert found is not None
    return found


def _wrong(check: CacheCheck) -> list[str]:
    return [probe.name for probe in check.probes if not probe.kld < 1e-6]


def test_a_sound_runtime_says_the_same_in_every_way(tiny_dense: Path) -> None:
    found = _check(tiny_dense)
    assert [probe.name for probe in found.probes] == ALL
    assert _wrong(found) == [] and found.not_seen == ()


@pytest.mark.parametrize(
    ("fault", "wrong"),
    [
        ("forget_conv", ["stepwise", "chunked", "interleaved"]),
        ("shared_state", ["interleaved"]),
        ("padding_counts", ["batch_left"]),
    ],
)
def test_a_broken_way_is_the_one_that_shows(fault: str, wrong: list[str], tiny_dense: Path) -> None:
    found = _check(tiny_dense, **{fault: True})
    assert _wrong(found) == wrong
    worst = next(probe for probe in found.probes if probe.name == wrong[0])
    assert worst.prompt in (0, 1) and 0 <= worst.position < len(SECOND)


def test_a_runtime_that_holds_one_conversation_says_what_was_not_seen(tiny_dense: Path) -> None:
    found = _check(tiny_dense, alone=True)
    assert [probe.name for probe in found.probes] == ["stepwise", "chunked", "reset"]
    assert [reason.split(":")[0] for reason in found.not_seen] == ["interleaved", "batch"]


def test_no_prompt_is_no_check(tiny_dense: Path) -> None:
    assert check_cache(FakeRunner({"checkpoint": str(tiny_dense)}), [], []) is None


def test_the_sizes_of_chunks(tiny_dense: Path) -> None:
    sizes: list[int] = []

    class Recorder(FakeRunner):
        def extend(self, token_ids: Any) -> np.ndarray:
            sizes.append(len(token_ids))
            return super().extend(token_ids)

    _check(tiny_dense, Recorder, alone=True)
    n = len(FIRST)
    assert sizes[:n] == [1] * n
    assert sizes[n : n + 9] == [2] * 8 + [1]
    assert sizes[n + 9 : n + 15] == [3] * 5 + [2]
    assert sizes[n + 15 : n + 20] == [4] * 4 + [1]
    assert sizes[n + 20 :] == [1, 2, 3, 4, 1, 6, 1, 2, 3, 4, 1, 29, n]


def test_a_long_prompt_is_cut_around_512(tiny_dense: Path) -> None:
    sizes: list[int] = []

    class Counter(FakeRunner):
        def extend(self, token_ids: Any) -> np.ndarray:
            sizes.append(len(token_ids))
            return np.zeros((len(token_ids), 4), np.float32)

    runner = Counter({"checkpoint": str(tiny_dense), "alone": True})
    long = tuple(range(1540))
    check_cache(runner, (FIRST, long), [np.zeros((len(ids), 4), np.float32) for ids in (FIRST, long)])
    assert [size for size in sizes if size > 400] == [511, 512, 513, 1540] and sizes.count(4) >= 4


def test_a_long_prompt_is_also_read_in_one_call(tiny_dense: Path) -> None:
    class Forgetful(FakeRunner):
        """Sees no more than the last tokens of a call."""

        def extend(self, token_ids: Any) -> np.ndarray:
            logits = super().extend(token_ids)
            return logits if len(token_ids) <= AT_ONCE else np.roll(logits, 1, axis=1)

    long = [token % 512 for token in range(AT_ONCE + 1)]
    for kind, is_right in ((FakeRunner, True), (Forgetful, False)):
        runner = kind({"checkpoint": str(tiny_dense), "alone": True})
        whole = np.concatenate([runner.logits(long[:-1]), runner.extend(long[-1:])])
        found = check_cache(runner, [long], [whole])
        assert found is not None
        (probe,) = [each for each in found.probes if each.name == "at_once"]
        assert (probe.kld < 1e-9) is is_right
        assert probe.position == len(long) - 1


@pytest.mark.parametrize(("sizes", "chosen"), [((20, 640), 0), ((20, 641, 1000), 2), ((20, 1000, 1600, 1700), 2)])
def test_a_prompt_that_is_not_run_whole_is_checked(sizes: tuple[int, ...], chosen: int) -> None:
    found = cache_prompts([EncodedPrompt(str(n), (1,) * n) for n in sizes])
    assert found == ((0, chosen) if chosen else (0,))
