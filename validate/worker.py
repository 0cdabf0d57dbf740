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
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ..graph.errors import BackendError, LfmConvertError
from ..graph.source.assets import CHAT_TEMPLATE, DEFAULT_TEMPLATE, TOKENIZER_CONFIG, Assets, read_assets
from ..graph.source.chat import Refusal, try_chats
from ..graph.source.tokenizer import TOKENIZER_FILE, Tokenizer
from ..targets.target import Artifact, Runner
from .jobs import Job, Outcome, Status, load_job, resolve_target, save_step
from .probes import check_cache
from .prompt_runs import Experts, Ran, end_to_end, run_prompts
from .prompts import Chat
from .steps import Step

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
            return _probe(runner, job, run_prompts(runner, job, folder), partial(save_step, folder))
    except BackendError as error:
        return Outcome(status=Status.SKIPPED, backend=backend, message=str(error))
    except LfmConvertError as error:
        return Outcome(status=Status.FAILED, backend=backend, message=str(error))
    except Exception as error:  # runtimes raise what they like
        traceback.print_exc()
        full = isinstance(error, OSError) and error.errno == errno.ENOSPC
        message = f"{type(error).__name__}: {error}"
        return Outcome(status=Status.DISK if full else Status.FAILED, backend=backend, message=message)


def _probe(runner: Runner, job: Job, ran: Ran, tell: Callable[[Step], None]) -> Outcome:
    """Everything but what running the prompts gave; `tell` gets each step as it begins."""
    if job.gives_vectors:
        tell(Step("tokenizer"))
        return Outcome(status=Status.DONE, backend=runner.backend, encoded=_tokenize(runner, job.artifact, job.texts))
    cache = check_cache(
        runner, [job.prompts[i] for i in job.cache_prompts], ran.kept, tell=lambda way: tell(Step(f"cache, {way}"))
    )
    tell(Step("tokenizer and chats"))
    encoded, rendered = _tokenize(runner, job.artifact, job.texts), _render(runner, job)
    experts = ran.experts
    if experts is None:
        tell(Step("experts"))
        experts = _experts(runner, [job.prompts[i] for i in job.expert_prompts])
    if job.expert_prompts and experts is None and cache is not None:
        cache = replace(cache, not_seen=(*cache.not_seen, _NO_EXPERTS))
    return Outcome(
        status=Status.DONE,
        backend=runner.backend,
        cache=cache,
        greedy=ran.greedy,
        encoded=encoded,
        rendered=rendered,
        experts=None if experts is None else {layer: rows.tolist() for layer, rows in experts.items()},
        stops=ran.stops,
        end=ran.end,
    )


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


def _experts(runner: Runner, prompts: Sequence[Sequence[int]]) -> Experts | None:
    """What each layer's router chose, prompts end to end. The last probe: a runner may load its model anew for it."""
    found = []
    for token_ids in prompts:
        chosen = runner.experts(token_ids)
        if chosen is None:
            return None
        found.append(chosen)
    return end_to_end(found) if found else None


if __name__ == "__main__":
    main(Path(sys.argv[1]))
