"""Runs one artifact in a process of its own: `python -m lfm_convert.validate.worker FOLDER`.

A runtime that crashes, hangs or eats all memory takes this process down and nothing else.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ..graph.dtypes import Float32
from ..graph.errors import BackendError, InputError, LfmConvertError
from ..graph.source.assets import CHAT_TEMPLATE, DEFAULT_TEMPLATE, TOKENIZER_CONFIG, Assets, read_assets
from ..graph.source.chat import Refusal, try_chats
from ..graph.source.tokenizer import TOKENIZER_FILE, Tokenizer
from ..targets.target import Artifact, Runner
from .jobs import Job, Outcome, Status, load_job, resolve_target, save_step
from .probes import AT_ONCE, check_cache
from .prompts import Chat
from .steps import Step
from .stops import ends_at
from .stored_logits import StoredLogits, save_logits

_NO_EXPERTS = "experts: the runtime does not show which it chose"


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
        save_step(folder, Step("loading"))
        with closing(target.run(job.artifact, threads=job.threads)) as runner:
            backend = runner.backend
            return _probe(runner, job, _run_prompts(runner, job, folder), partial(save_step, folder))
    except BackendError as error:
        return Outcome(status=Status.SKIPPED, backend=backend, message=str(error))
    except LfmConvertError as error:
        return Outcome(status=Status.FAILED, backend=backend, message=str(error))
    except Exception as error:  # runtimes raise what they like
        traceback.print_exc()
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        message = f"{type(error).__name__}: {error}"
        return Outcome(status=Status.DISK if full else Status.FAILED, backend=backend, message=message)


def _probe(runner: Runner, job: Job, kept: Sequence[StoredLogits], tell: Callable[[Step], None]) -> Outcome:
    """Everything but the logits; `kept` are those of the cache prompts, `tell` gets each step as it begins."""
    if job.gives_vectors:
        tell(Step("tokenizer"))
        return Outcome(status=Status.DONE, backend=runner.backend, encoded=_tokenize(runner, job.artifact, job.texts))
    cache = check_cache(
        runner, [job.prompts[i] for i in job.cache_prompts], kept, tell=lambda way: tell(Step(f"cache, {way}"))
    )
    greedy = []
    for done, i in enumerate(job.greedy_prompts):
        tell(Step("greedy text", done, len(job.greedy_prompts), "prompts"))
        greedy.append(_generate(runner, job.prompts[i], n=job.n_greedy, is_end=job.stop.__contains__))
    tell(Step("tokenizer and chats"))
    stops = {reader: tuple(map(int, ids)) for reader, ids in runner.stops().items()}
    encoded, rendered = _tokenize(runner, job.artifact, job.texts), _render(runner, job)
    end = None
    if stops and job.end_prompt is not None:
        prompt, n_tokens = job.end_prompt
        tell(Step("a turn to its end"))
        end = _generate(runner, job.prompts[prompt], n=n_tokens, is_end=partial(ends_at, stops))
    tell(Step("experts"))
    experts = _experts(runner, [job.prompts[i] for i in job.expert_prompts])
    if job.expert_prompts and experts is None and cache is not None:
        cache = replace(cache, not_seen=(*cache.not_seen, _NO_EXPERTS))
    return Outcome(
        status=Status.DONE,
        backend=runner.backend,
        cache=cache,
        greedy=tuple(greedy),
        encoded=encoded,
        rendered=rendered,
        experts=experts,
        stops=stops,
        end=end,
    )


def _run_prompts(runner: Runner, job: Job, folder: Path) -> list[StoredLogits]:
    """Publishes the logits of every prompt; returns those of the cache prompts, which it keeps in files of its own."""
    kept = {}
    for index, token_ids in enumerate(job.prompts):
        also = folder / f"kept-{index:05d}.f32" if index in job.cache_prompts else None
        kept[index] = save_logits(folder, index, _rows(runner, token_ids, job), also=also)
    return [found for index in job.cache_prompts if (found := kept[index]) is not None]


def _rows(runner: Runner, token_ids: Sequence[int], job: Job) -> Iterator[Float32]:
    """Logits of a prompt, some tokens of it at a time: those of a long one may be larger than the model. Or its vectors,
    all together: a token may see every other.
    """
    if job.gives_vectors:
        n_rows = len(token_ids) if job.is_per_token else 1
        yield _checked(runner.vectors(token_ids), n_rows, job.n_outputs, what="vectors")
        return
    runner.reset()
    for low in range(0, len(token_ids), AT_ONCE):
        ids = token_ids[low : low + AT_ONCE]
        yield _checked(runner.extend(ids), len(ids), job.n_outputs)


def _checked(logits: Float32, n: int, n_outputs: int, *, what: str = "logits") -> Float32:
    found = np.asarray(logits)
    if found.shape != (n, n_outputs):
        parts = "vocabulary or its tokens are" if what == "logits" else "pooling or its projection is"
        given = (
            f"logits of shape {list(found.shape)} for {n} tokens"
            if what == "logits"
            else f"vectors {list(found.shape)}"
        )
        raise InputError(
            f"the artifact gives {given}: expected {[n, n_outputs]}, "
            f"so its {parts} not the checkpoint's and nothing was compared"
        )
    return found.astype(np.float32, copy=False)


def _generate(runner: Runner, prompt: Sequence[int], *, n: int, is_end: Callable[[int], bool]) -> tuple[int, ...]:
    """Greedy continuation of up to n tokens, ending with the first that ends a text."""
    out: list[int] = []
    logits = runner.logits(prompt)
    while True:
        out.append(int(logits[-1].argmax()))
        if is_end(out[-1]) or len(out) == n:
            return tuple(out)
        logits = runner.extend(out[-1:])


def _tokenize(runner: Runner, artifact: Artifact, texts: Sequence[str]) -> tuple[tuple[int, ...], ...] | None:
    """Ids of texts by the runtime's tokenizer, or by the one that lies beside the artifact; None without either."""
    found = [runner.tokenize(text) for text in texts]
    if None in found:
        folder = _folder_with(artifact, TOKENIZER_FILE)
        if folder is None:
            return None
        tokenizer = Tokenizer(folder / TOKENIZER_FILE)
        found = [tokenizer.encode(text) for text in texts]
    return tuple(tuple(ids or ()) for ids in found)


def _folder_with(artifact: Artifact, name: str) -> Path | None:
    """The folder beside the artifact's main file, or above it, that holds a file."""
    return next((folder for folder in (artifact.path.parent, artifact.folder) if (folder / name).is_file()), None)


def _render(runner: Runner, job: Job) -> tuple[str, ...] | None:
    """Chats by the runtime's own template engine, or by ours with the artifact's template; None without either."""
    templates = _templates(runner, job.artifact)
    if templates is None or not job.chats:
        return None
    texts = [""] * len(job.chats)
    for tools, members in _by_tools(job.chats):
        conversations = [job.chats[i].messages for i in members]
        rendered: Sequence[str | Refusal] | None = runner.render(conversations, tools)
        if rendered is None:
            template = templates.template_for(tools)
            if template is None:  # the checkpoint has one for these chats
                return None
            rendered = try_chats(template, conversations, special_tokens=job.special_tokens, tools=tools or None)
        for i, text in zip(members, rendered, strict=True):
            texts[i] = text.reason if isinstance(text, Refusal) else text.removeprefix(job.opening)
    return tuple(texts)


def _templates(runner: Runner, artifact: Artifact) -> Assets | None:
    """The templates inside an artifact, or of the folder beside it; None if there are none."""
    inside = runner.templates()
    if inside:
        return Assets(chat_template=inside.get(DEFAULT_TEMPLATE), named_templates=dict(inside))
    folder = next(
        (found for name in (CHAT_TEMPLATE, TOKENIZER_CONFIG) if (found := _folder_with(artifact, name))), None
    )
    assets = read_assets(folder) if folder else Assets()
    return assets if assets.chat_template is not None or assets.named_templates else None


def _by_tools(chats: Sequence[Chat]) -> list[tuple[Sequence[Mapping[str, Any]], list[int]]]:
    """Indices of chats by the tools they share: one engine renders them together."""
    groups: dict[str, list[int]] = {}
    for i, chat in enumerate(chats):
        groups.setdefault(json.dumps(chat.tools), []).append(i)
    return [(chats[members[0]].tools, members) for members in groups.values()]


def _experts(runner: Runner, prompts: Sequence[Sequence[int]]) -> dict[int, list[list[int]]] | None:
    """What each layer's router chose, prompts end to end. The last probe: a runner may load its model anew for it."""
    found = []
    for token_ids in prompts:
        chosen = runner.experts(token_ids)
        if chosen is None:
            return None
        found.append(chosen)
    return {layer: np.concatenate([each[layer] for each in found]).tolist() for layer in found[0]} if found else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
