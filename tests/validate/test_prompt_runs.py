"""Prompts are read once: logits, experts and texts come from the same pass."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import InputError
from lfm_convert.targets.target import Artifact, Runner
from lfm_convert.validate.jobs import Job
from lfm_convert.validate.prompt_runs import Ran, run_prompts
from lfm_convert.validate.prompts import EncodedPrompt
from lfm_convert.validate.selection import greedy_prompts
from lfm_convert.validate.stored_logits import take_logits

N_WORDS = 50


class Counting(Runner):
    """Says the number after the last; its one router chooses by the token. `read` are all tokens it was given."""

    backend = "counting"

    def __init__(self, *, stops: Sequence[int] = (), is_shown: bool = True) -> None:
        self.read: list[int] = []
        self._stops, self._is_shown, self._is_watched = stops, is_shown, False

    def reset(self) -> None:
        return

    def extend(self, token_ids: Sequence[int]) -> np.ndarray:
        self.read += token_ids
        return np.eye(N_WORDS, dtype=np.float32)[[(token + 1) % N_WORDS for token in token_ids]]

    def stops(self) -> dict[str, Sequence[int]]:
        return {"reader": self._stops} if self._stops else {}

    @contextmanager
    def watching(self) -> Iterator[Callable[[int], dict[int, Any] | None]]:
        seen = lambda n: {2: np.array([[token % 4] for token in self.read[-n:]])}  # noqa: E731
        yield seen if self._is_shown else (lambda n: None)


class Silent(Counting):
    """Its list of stop ids is damaged."""

    def stops(self) -> dict[str, Sequence[int]]:
        raise InputError("no list")


def _job(**options: Any) -> Job:
    nowhere = Path()
    artifact = Artifact(nowhere, nowhere, "t", "q", "q8", ())
    given = {"prompts": ((1, 2, 3), (10, 11), (20,)), "cache_prompts": (1,), "greedy_prompts": (0, 2), "n_greedy": 4}
    return Job(
        **{
            "artifact": artifact,
            "find_target": "",
            "threads": 1,
            "n_outputs": N_WORDS,
            "stop": (22,),
            **given,
            **options,
        }
    )


def _run(runner: Counting, folder: Path, **options: Any) -> Ran:
    """What a run leaves, with somebody there who takes the logits."""
    job = _job(**options)
    found = run_prompts(runner, job, folder)
    for index in range(len(job.prompts)):
        taken = take_logits(folder, index, vocab_size=N_WORDS)
        assert taken is None or taken.shape == (len(job.prompts[index]), N_WORDS)
    return found


@pytest.fixture(autouse=True)
def nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lfm_convert.validate.stored_logits._MAX_WAITING", 9)


def test_no_token_is_read_twice(tmp_path: Path) -> None:
    runner = Counting(stops=(13,))
    ran = _run(runner, tmp_path, expert_prompts=(0, 1), end_prompt=(1, 9))
    assert runner.read == [1, 2, 3, 4, 5, 6, 10, 11, 12, 20, 21]
    assert ran.greedy == ((4, 5, 6, 7), (21, 22))
    assert ran.end == (12, 13)
    assert ran.experts is not None and ran.experts[2].tolist() == [[1], [2], [3], [2], [3]]
    assert [kept[0:2].argmax(axis=1).tolist() for kept in ran.kept] == [[11, 12]]


@pytest.mark.parametrize(("stops", "greedy", "end"), [((21,), (21, 22), (21,)), ((24,), (21, 22), (21, 22, 23, 24))])
def test_a_text_goes_on_for_whoever_wants_most_of_it(
    tmp_path: Path, stops: tuple[int, ...], greedy: tuple[int, ...], end: tuple[int, ...]
) -> None:
    """The checkpoint ends at 22, the artifact before or after it."""
    ran = _run(Counting(stops=stops), tmp_path, end_prompt=(2, 9))
    assert ran.greedy[1] == greedy and ran.end == end


def test_experts_that_are_not_seen_in_passing_are_asked_for_later(tmp_path: Path) -> None:
    assert _run(Counting(is_shown=False), tmp_path, expert_prompts=(0,)).experts is None


def test_damaged_stop_ids_are_told_after_the_prompts(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no list"):
        _run(Silent(), tmp_path)
    assert take_logits(tmp_path, 2, vocab_size=N_WORDS) is not None


def test_the_turn_that_is_run_to_its_end_is_one_of_the_greedy_texts() -> None:
    prompts = [EncodedPrompt(str(n), (5,) * n) for n in (3, 20, 40, 60, 80, 100)]
    usual = greedy_prompts(prompts)
    assert len(usual) == 4
    other = next(i for i in range(len(prompts)) if i not in usual)
    chosen = greedy_prompts(prompts, (other, 9))
    assert other in chosen and len(set(chosen) - set(usual)) == 1 and len(chosen) == 4
    assert greedy_prompts(prompts, (usual[0], 9)) == usual
