"""`lfm-convert calibrate MODEL --text FILE -o imatrix.gguf`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from .. import pipeline
from ..errors import InputError, UsageError
from ..model.chat import render_chats
from ..model.graph import WeightGraph
from .console import Json, Model, Offline, Revision, output, print_json, watched


def calibrate(
    text: Annotated[
        list[Path],
        typer.Option(
            "--text", help='Text file, or .jsonl with one {"messages": […]} a line; repeatable.', show_default=False
        ),
    ],
    out: Annotated[Path, typer.Option("--out", "-o", help="Importance matrix to write.", show_default=False)],
    model: Model = None,
    chunk_size: Annotated[int, typer.Option("--chunk-size", min=16, help="Tokens that see each other.")] = 512,
    max_chunks: Annotated[
        int | None, typer.Option("--max-chunks", min=1, help="Stop after so many.", show_default=False)
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Measure how much each column of every weight is used; `convert --imatrix` takes the file, and so does llama.cpp."""
    from ...quantize.calibration import calibrate as measure
    from ...targets.gguf.imatrix import write_importance
    from ...targets.gguf.names import tensor_name

    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, progress=progress)
        chunks = [chunk for path in text for chunk in _chunks(graph, path, chunk_size)][:max_chunks]
        n_tokens = sum(map(len, chunks))
        progress.start("calibrating", n_tokens, "tokens")
        uses = {tensor_name(address): use for address, use in measure(graph, chunks, advance=progress.advance).items()}
    names = tuple(str(path) for path in text)
    write_importance(out, uses, datasets=names, n_chunks=len(chunks), chunk_size=chunk_size)
    never_hit = {name: list(use.never_hit) for name, use in uses.items() if use.never_hit}
    found = {"path": str(out), "entries": len(uses), "chunks": len(chunks), "tokens": n_tokens, "never_hit": never_hit}
    if as_json:
        print_json(found)
        return 0
    output.print(f"{out}: {len(uses)} weights, {len(chunks)} chunks, {n_tokens:,} tokens")
    for name, experts in never_hit.items():
        output.print(f"no token reached experts {', '.join(map(str, experts))} of {name}")
    return 0


def _chunks(graph: WeightGraph, path: Path, chunk_size: int) -> Iterable[list[int]]:
    """Token ids of a file, at most chunk_size together: cut anywhere, of conversations only the start.

    Raises: UsageError for a model without tokenizer or template; InputError for a file that cannot be read.
    """
    tokenizer, bos = graph.tokenizer, graph.config.bos_token_id
    if tokenizer is None:
        raise UsageError(f"{graph.folder}: has no tokenizer.json, which calibration needs")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    if path.suffix == ".jsonl":
        for rendered in _rendered(graph, path, content):
            yield tokenizer.encode(rendered, special=False)[:chunk_size]
        return
    start = [] if bos is None else [bos]
    ids = tokenizer.encode(content, special=False)
    step = chunk_size - len(start)
    if not ids:
        raise InputError(f"{path}: holds no text")
    for at in range(0, len(ids), step):
        yield start + ids[at : at + step]


def _rendered(graph: WeightGraph, path: Path, content: str) -> list[str]:
    template = graph.assets.chat_template
    if template is None:
        raise UsageError(f"{graph.folder}: has no chat template, which conversations need")
    try:
        conversations = [json.loads(line)["messages"] for line in content.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected one JSON object with 'messages' a line: {error!r}") from None
    bos = graph.assets.tokenizer_config.get("bos_token")
    return render_chats(template, conversations, bos_token=bos if isinstance(bos, str) else "")
