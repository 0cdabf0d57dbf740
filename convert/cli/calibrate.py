"""`lfm-convert calibrate MODEL --text FILE -o imatrix.gguf`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

import typer

from ...graph.errors import InputError, UsageError
from ...graph.graph import WeightGraph
from ...graph.json_text import parse_json
from ...graph.source.chat import Refusal, try_chats
from ...validate.outputs import check_reports, is_stdout, write_report
from .. import pipeline
from .console import Json, Model, Offline, Revision, errors, output, print_json, watched


def calibrate(
    text: Annotated[
        list[Path],
        typer.Option(
            "--text", help='Text file, or .jsonl with one {"messages": […]} a line; repeatable.', show_default=False
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="Importance matrix to write; '-' is stdout.", show_default=False)
    ],
    model: Model = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
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
    from ...quantize.gguf_file.tensor_names import tensor_name
    from ...quantize.imatrix import importance_bytes

    _check_out(out, text, overwrite=overwrite, as_json=as_json)
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, progress=progress)
        chunks = [chunk for path in text for chunk in _chunks(graph, path, chunk_size)][:max_chunks]
        n_tokens = sum(map(len, chunks))
        progress.start("calibrating", n_tokens, "tokens")
        measured = measure(graph, chunks, advance=progress.advance)
        uses = {tensor_name(address, graph.config.family): use for address, use in measured.items()}
    names = tuple(path.name for path in text)
    write_report(out, importance_bytes(uses, datasets=names, n_chunks=len(chunks), chunk_size=chunk_size))
    never_hit = {name: list(use.never_hit) for name, use in uses.items() if use.never_hit}
    found = {"path": str(out), "entries": len(uses), "chunks": len(chunks), "tokens": n_tokens, "never_hit": never_hit}
    if as_json:
        print_json(found)
        return 0
    console = errors if is_stdout(out) else output
    console.print(f"{out}: {len(uses)} weights, {len(chunks)} chunks, {n_tokens:,} tokens")
    for name, experts in never_hit.items():
        console.print(f"no token reached experts {', '.join(map(str, experts))} of {name}")
    return 0


def _check_out(out: Path, text: list[Path], *, overwrite: bool, as_json: bool) -> None:
    """Raises: UsageError for a file that is there already, or a stdout wanted twice; DiskError as `check_report`."""
    if is_stdout(out) and as_json:
        raise UsageError("--json prints on standard output: give --out a file")
    if out.is_file() and not is_stdout(out) and not overwrite:
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    check_reports([out], read=text)


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
        rendered = [tokenizer.encode(text, special=False)[:chunk_size] for text in _rendered(graph, path, content)]
        if not any(rendered):
            raise InputError(f"{path}: holds no conversation")
        yield from rendered
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
        conversations = [parse_json(line)["messages"] for line in content.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected one JSON object with 'messages' a line: {error!r}") from None
    found = try_chats(template, conversations, special_tokens=graph.assets.special_tokens)
    refusals = [each for each in found if isinstance(each, Refusal)]
    texts = [each for each in found if isinstance(each, str)]
    if refusals and not texts:
        raise InputError(f"{path}: the chat template refuses every conversation: {refusals[0].reason}")
    if refusals:
        errors.print(
            f"{path}: {len(refusals)} of {len(found)} conversations are left out, since the chat template refuses: "
            f"{refusals[0].reason}",
            markup=False,
            soft_wrap=True,
        )
    return texts
