"""`lfm-convert calibrate MODEL --text FILE -o imatrix.gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import UsageError
from ...validate.outputs import check_reports, is_stdout, write_report
from .. import pipeline
from ..calibration import CHUNK_TOKENS, LEAST_CHUNK_TOKENS, measure
from .adapter_options import adapter_options
from .console import Json, Model, Offline, Revision, errors, output, print_json, watched
from .costs import measure_costs
from .option_groups import grouped


@grouped(adapters=adapter_options)
def calibrate(
    *,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text", help='Text file, or .jsonl with one {"messages": […]} a line; repeatable.', show_default=False
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Importance matrix to write; '-' is stdout. With --costs the folder of statistics.",
            show_default=False,
        ),
    ],
    costs: Annotated[
        list[str] | None,
        typer.Option(
            "--costs",
            metavar="NAMES",
            help="Targets, repeatable or comma-separated: measure what each of their encodings costs, and keep it in --out.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    adapters: Adapting,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", min=LEAST_CHUNK_TOKENS, help="Tokens that see each other.")
    ] = CHUNK_TOKENS,
    max_chunks: Annotated[
        int | None, typer.Option("--max-chunks", min=1, help="Stop after so many.", show_default=False)
    ] = None,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Measure how much each column of every weight is used; `convert --imatrix` takes the file, and so does llama.cpp."""
    if costs:
        if text:
            raise UsageError("--costs follow from statistics that are there: give it without --text")
        with watched() as progress:
            graph = pipeline.open_model(model, revision=revision, offline=offline, adapters=adapters, progress=progress)
            return measure_costs(graph, costs, out, progress=progress, as_json=as_json)
    if not text:
        raise UsageError("--text is needed: a file that is run, or --costs for what follows from statistics")
    _check_out(out, text, overwrite=overwrite, as_json=as_json)
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, adapters=adapters, progress=progress)
        done = measure(graph, text, chunk_size=chunk_size, max_chunks=max_chunks, progress=progress)
    write_report(out, done.content)
    found = {
        "path": str(out),
        "entries": done.n_weights,
        "chunks": done.n_chunks,
        "tokens": done.n_tokens,
        "never_hit": done.never_hit,
    }
    if as_json:
        print_json(found)
        return 0
    console = errors if is_stdout(out) else output
    console.print(f"{out}: {done.n_weights} weights, {done.n_chunks} chunks, {done.n_tokens:,} tokens")
    for name, experts in done.never_hit.items():
        console.print(f"no token reached experts {', '.join(map(str, experts))} of {name}")
    return 0


def _check_out(out: Path, text: list[Path], *, overwrite: bool, as_json: bool) -> None:
    """Raises: UsageError for a file that is there already, or a stdout wanted twice; DiskError as `check_report`."""
    if is_stdout(out) and as_json:
        raise UsageError("--json prints on standard output: give --out a file")
    if out.is_file() and not is_stdout(out) and not overwrite:
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    check_reports([out], read=text)
