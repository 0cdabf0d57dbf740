"""Runs one artifact in a process of its own: `python -m lfm_convert.validate.worker FOLDER`.

A runtime that crashes, hangs or eats all memory takes this process down and nothing else.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
import traceback
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np

from ..convert.errors import BackendError, InputError, LfmConvertError
from ..convert.model.dtypes import Float32
from ..convert.model.tokenizer import TOKENIZER_FILE, Tokenizer
from ..targets.target import Artifact, Runner
from .jobs import LONG_CHUNKS, CacheCheck, Job, Outcome, Status, load_job, resolve_target, save_logits
from .metrics import position_kld

# Chunks that cross the window of a short convolution in every way; the rest of the prompt follows whole.
_CHUNKS = (1, 2, 3, 4, 1)


def main(folder: Path) -> None:
    """Carries out the job of a folder and writes its outcome."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    job = load_job(folder)
    work(job, folder).save(folder)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input; if it dies, so does this process."""
    sys.stdin.read()
    os._exit(1)


def work(job: Job, folder: Path) -> Outcome:
    """Logits of every prompt into the folder, then the cache and greedy probes."""
    backend = ""
    try:
        target = resolve_target(job.find_target, job.artifact.target)
        missing = target.missing()
        if missing is not None:
            return Outcome(status=Status.SKIPPED, message=missing)
        with closing(target.run(job.artifact, threads=job.threads)) as runner:
            backend = runner.backend
            kept = _run_prompts(runner, job, folder)
            cache = check_cache(runner, [job.prompts[i] for i in job.cache_prompts], kept)
            greedy = tuple(_generate(runner, job.prompts[i], n=job.n_greedy, stop=job.stop) for i in job.greedy_prompts)
            encoded = _tokenize(runner, job.artifact, job.texts)
            return Outcome(status=Status.DONE, backend=backend, cache=cache, greedy=greedy, encoded=encoded)
    except BackendError as error:
        return Outcome(status=Status.SKIPPED, backend=backend, message=str(error))
    except LfmConvertError as error:
        return Outcome(status=Status.FAILED, backend=backend, message=str(error))
    except Exception as error:  # runtimes raise what they like
        traceback.print_exc()
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        message = f"{type(error).__name__}: {error}"
        return Outcome(status=Status.DISK if full else Status.FAILED, backend=backend, message=message)


def _run_prompts(runner: Runner, job: Job, folder: Path) -> list[Float32]:
    """Publishes the logits of every prompt; returns those of the cache prompts."""
    kept = {}
    for index, token_ids in enumerate(job.prompts):
        logits = _checked(runner.logits(token_ids), len(token_ids), job.vocab_size)
        if index in job.cache_prompts:
            kept[index] = logits
        save_logits(folder, index, logits)
    return [kept[index] for index in job.cache_prompts]


def _checked(logits: Float32, n: int, vocab_size: int) -> Float32:
    found = np.asarray(logits)
    if found.shape != (n, vocab_size):
        raise InputError(
            f"the artifact gives logits of shape {list(found.shape)} for {n} tokens: expected {[n, vocab_size]}, "
            "so its vocabulary or its tokens are not the checkpoint's and nothing was compared"
        )
    return found.astype(np.float32)


def check_cache(runner: Runner, prompts: Sequence[Sequence[int]], whole: Sequence[Float32]) -> CacheCheck | None:
    """Runs prompts again in chunks, and the first once more after the others; None without prompts."""
    if not prompts:
        return None
    stepwise = [_differences(logits, _in_chunks(runner, ids)) for ids, logits in zip(prompts, whole, strict=True)]
    reset = _differences(whole[0], runner.logits(prompts[0]))
    return CacheCheck(
        stepwise_max_abs=float(np.max([max_abs for max_abs, _ in stepwise])),
        stepwise_kld=float(np.max([kld for _, kld in stepwise])),
        reset_max_abs=reset[0],
        reset_kld=reset[1],
    )


def _in_chunks(runner: Runner, token_ids: Sequence[int]) -> Float32:
    runner.reset()
    pieces, low = [], 0
    sizes = LONG_CHUNKS if len(token_ids) > sum(LONG_CHUNKS) else _CHUNKS
    for size in (*sizes, len(token_ids)):
        if chunk := token_ids[low : low + size]:
            pieces.append(runner.extend(chunk))
        low += size
    return np.concatenate(pieces)


def _differences(first: Float32, second: Float32) -> tuple[float, float]:
    """Largest logit difference and largest divergence of two arrays [n, V]."""
    return float(np.abs(first - second).max()), float(position_kld(first, second).max())


def _generate(runner: Runner, prompt: Sequence[int], *, n: int, stop: Sequence[int]) -> tuple[int, ...]:
    """Greedy continuation, ending with the first stop id."""
    out: list[int] = []
    logits = runner.logits(prompt)
    while True:
        out.append(int(logits[-1].argmax()))
        if out[-1] in stop or len(out) == n:
            return tuple(out)
        logits = runner.extend(out[-1:])


def _tokenize(runner: Runner, artifact: Artifact, texts: Sequence[str]) -> tuple[tuple[int, ...], ...] | None:
    """Ids of texts by the runtime's tokenizer, or by the one that lies beside the artifact; None without either."""
    found = [runner.tokenize(text) for text in texts]
    if None in found:
        path = artifact.folder / TOKENIZER_FILE
        if not path.is_file():
            return None
        tokenizer = Tokenizer(path)
        found = [tokenizer.encode(text) for text in texts]
    return tuple(tuple(ids or ()) for ids in found)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
