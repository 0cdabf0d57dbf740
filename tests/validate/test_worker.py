"""The worker's work, in this process."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import DiskError
from lfm_convert.validate import isolate, prompt_runs, worker
from lfm_convert.validate.jobs import Job, Outcome, Status, load_job, load_outcome
from lfm_convert.validate.probes import CacheCheck, Probe
from lfm_convert.validate.prompts import Chat
from lfm_convert.validate.stored_logits import save_logits, take_logits
from support.fake_target import FIND_TARGET, make_artifact

IDS = tuple(range(20, 40))


def _job(folder: Path, checkpoint: Path, **fault: Any) -> Job:
    return Job(
        artifact=make_artifact(folder, checkpoint, **fault),
        find_target=FIND_TARGET,
        threads=1,
        n_outputs=512,
        prompts=((1,), IDS),
        cache_prompts=(1,),
        greedy_prompts=(0,),
        n_greedy=3,
        stop=(7,),
        texts=("a",),
        chats=(Chat(({"role": "user", "content": "a"},)), Chat(({"role": "user", "content": "b"},), ({"name": "t"},))),
        special_tokens={"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>"},
        opening="<|startoftext|>",
        expert_prompts=(0,),
    )


def test_a_job_survives_its_file(tmp_path: Path, tiny_dense: Path) -> None:
    job = _job(tmp_path, tiny_dense)
    job.save(tmp_path)
    assert load_job(tmp_path) == job


def test_an_outcome_survives_its_file(tmp_path: Path) -> None:
    assert load_outcome(tmp_path) is None
    probe = Probe("reset", 0.0, 1.5, 1, 30)
    outcome = Outcome(
        status=Status.DONE,
        message="é",
        backend="b",
        cache=CacheCheck((probe,), ("batch: no",)),
        greedy=((1, 2), ()),
        encoded=((1, 2),),
        rendered=("a",),
        experts={3: [[1, 2], [3, 4]]},
    )
    outcome.save(tmp_path)
    assert load_outcome(tmp_path) == outcome
    replace(outcome, cache=CacheCheck((replace(probe, kld=float("nan")),))).save(tmp_path)
    found = load_outcome(tmp_path)
    assert found is not None and found.cache is not None and np.isnan(found.cache.probes[0].kld)


def test_work_publishes_logits_and_probes(tmp_path: Path, tiny_dense: Path) -> None:
    job = _job(tmp_path, tiny_dense)
    outcome = worker.work(job, tmp_path)
    assert outcome.status is Status.DONE and outcome.backend == "fake 1.0"
    assert len(outcome.greedy) == 1 and len(outcome.greedy[0]) == 3
    logits = take_logits(tmp_path, 1, vocab_size=512)
    assert logits is not None and logits.shape == (20, 512) and logits[3:5].shape == (2, 512)
    logits.drop()
    assert take_logits(tmp_path, 1, vocab_size=512) is None


def test_a_full_disk_is_no_verdict(tmp_path: Path, tiny_dense: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prompt_runs, "save_logits", full)
    assert worker.work(_job(tmp_path, tiny_dense), tmp_path).status is Status.DISK


def test_the_parent_raises_for_a_full_disk(
    tmp_path: Path, tiny_dense: Path, fake_runtime: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = Outcome(status=Status.DISK, message="OSError: no space")
    monkeypatch.setattr(isolate, "load_outcome", lambda folder: outcome)
    with pytest.raises(DiskError, match="TMPDIR"):
        isolate.run_job(
            _job(tmp_path, tiny_dense, absent=True), tmp_path, time_limit_s=30, on_logits=lambda index, logits: None
        )


def test_published_logits_may_be_taken_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waits for them removes the file before the writer looks again."""
    replace_file = Path.replace

    def taken(self: Path, target: Path) -> Path:
        found = replace_file(self, target)
        found.unlink()
        return found

    monkeypatch.setattr(Path, "replace", taken)
    save_logits(tmp_path, 0, [np.zeros((2, 3), np.float32)])
    assert list(tmp_path.iterdir()) == []
