"""`lfm-convert calibrate MODEL -o STATS`, or `-o imatrix.gguf`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph
from ...graph.progress import Progress
from ...quantize.statistics.layout import STATISTICS_FILE
from ...validate.outputs import check_reports, is_stdout, write_report
from .. import pipeline
from ..calibration import CHUNK_TOKENS, LEAST_CHUNK_TOKENS, measure
from ..statistics import refuse_in_the_way, write_statistics
from .adapter_options import adapter_options
from .console import Json, Model, Offline, Revision, errors, output, print_json, watched
from .costs import measure_costs
from .option_groups import grouped

# What an importance file is called; anything else is a folder of statistics.
_FILE_SUFFIXES = (".gguf", ".dat")
_LISTED = 6  # experts that are named


@grouped(adapters=adapter_options)
def calibrate(
    *,
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help='Text file, or .jsonl with one {"messages": […]} a line; repeatable. Without one, the text that comes '
            "with the tool.",
            show_default=False,
        ),
    ] = None,
    default_text: Annotated[
        bool, typer.Option("--default-text", help="Run the text that comes with the tool before those of --text, too.")
    ] = False,
    out: Annotated[
        Path,
        typer.Option(
            "--out",
            "-o",
            help="Folder of statistics to write; or FILE.gguf, an importance matrix alone, '-' being stdout.",
            show_default=False,
        ),
    ],
    costs: Annotated[
        list[str] | None,
        typer.Option(
            "--costs",
            metavar="NAMES",
            help="Targets, repeatable or comma-separated, whose encodings' costs are kept with the statistics, also with "
            "those that are there already.",
            show_default=False,
        ),
    ] = None,
    model: Model = None,
    adapters: Adapting,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is there already.")] = False,
    chunk_size: Annotated[
        int, typer.Option("--chunk-size", min=LEAST_CHUNK_TOKENS, help="Tokens that see each other.")
    ] = CHUNK_TOKENS,
    max_chunks: Annotated[
        int | None, typer.Option("--max-chunks", min=1, help="Stop after so many.", show_default=False)
    ] = None,
    moments: Annotated[
        bool, typer.Option("--moments", help="Keep the second moments of every matrix's inputs, too: gigabytes.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume",
            help="Go on after the last whole layer of an interrupted run; if interrupted, keep what is done.",
        ),
    ] = False,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of the labels that gradients are taken of.")] = 0,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Measure a model's use on texts, once for every target: a folder of what its matrices are multiplied with and how
    much the loss minds what they give; or an importance file, which `convert --imatrix` and llama.cpp take.
    """
    texts = text or []
    is_folder = not _is_file(out)
    is_there = bool(costs) and is_folder and not (texts or overwrite) and (out / STATISTICS_FILE).is_file()
    chosen = {"with_default": default_text, "chunk_size": chunk_size, "max_chunks": max_chunks}
    if is_folder:
        if not is_there:
            refuse_in_the_way(out, overwrite=overwrite)
        chosen |= {"seed": seed, "moments": moments, "overwrite": overwrite, "resume": resume}
    else:
        is_more = moments or resume or seed != 0 or bool(costs)
        _check_file(out, texts, overwrite=overwrite, as_json=as_json, is_more=is_more)
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, adapters=adapters, progress=progress)
        done: _Done = {"path": str(out)}, []
        if not is_there:
            done = (_write_folder if is_folder else _write_file)(graph, texts, out, chosen, progress)
        found, lines = done
        if costs:
            found["costs"] = measure_costs(graph, costs, out, progress)
            lines.append(f"{out}: has what encodings cost of {', '.join(found['costs'])}")
    if as_json:
        print_json(found)
        return 0
    console = errors if is_stdout(out) else output
    for line in lines:
        console.print(line)
    return 0


_Done = tuple[dict[str, Any], list[str]]


def _write_file(
    graph: WeightGraph, texts: Sequence[Path], out: Path, chosen: dict[str, Any], progress: Progress
) -> _Done:
    """What there is to say, as JSON and in lines."""
    done = measure(graph, texts, **chosen, progress=progress)
    write_report(out, done.content)
    found = {
        "path": str(out),
        "entries": done.n_weights,
        "chunks": done.n_chunks,
        "tokens": done.n_tokens,
        "never_hit": done.never_hit,
    }
    lines = [f"{out}: {done.n_weights} weights, {done.n_chunks} chunks, {done.n_tokens:,} tokens"]
    lines += [f"no token reached experts {', '.join(map(str, which))} of {n}" for n, which in done.never_hit.items()]
    return found, lines


def _write_folder(
    graph: WeightGraph, texts: Sequence[Path], out: Path, chosen: dict[str, Any], progress: Progress
) -> _Done:
    """As `_write_file`."""
    done = write_statistics(graph, texts, out, **chosen, progress=progress)
    found = {
        "path": str(out),
        "entries": done.n_weights,
        "chunks": done.n_chunks,
        "tokens": done.n_tokens,
        "borrowed": done.borrowed,
    }
    lines = [f"{out}: {done.n_weights} weights, {done.n_chunks} chunks, {done.n_tokens:,} tokens"]
    return found, [*lines, *_borrowed_lines(done.borrowed)]


def _borrowed_lines(borrowed: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> list[str]:
    """Those with the fewest tokens of their own; a short text leaves most experts with too few."""
    told = [
        (about["tokens"], f"{which} of {layer} ({about['tokens']} + {about['borrowed']})")
        for layer, experts in borrowed.items()
        for which, about in experts.items()
    ]
    if not told:
        return []
    rarest = ", ".join(text for _, text in sorted(told, key=lambda each: each[0])[:_LISTED])
    more = " and others" if len(told) > _LISTED else ""
    return [
        f"{len(told)} experts have fewer tokens than columns and borrow of those that ranked them next: {rarest}{more}; "
        "statistics.json lists them"
    ]


def _is_file(out: Path) -> bool:
    """Whether an importance file is asked for: by its suffix, or because there is a device or pipe of this name."""
    return out.suffix in _FILE_SUFFIXES or is_stdout(out) or (out.exists() and not (out.is_dir() or out.is_file()))


def _check_file(out: Path, text: Sequence[Path], *, overwrite: bool, as_json: bool, is_more: bool) -> None:
    """Raises: UsageError for a file that is there already, a stdout wanted twice, or what no file of importance holds;
    DiskError as `check_report`.
    """
    if is_more:
        raise UsageError(
            f"{out}: is an importance file, and --moments, --seed and --costs go with a folder of statistics"
        )
    if is_stdout(out) and as_json:
        raise UsageError("--json prints on standard output: give --out a file")
    if out.is_file() and not is_stdout(out) and not overwrite:
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    check_reports([out], read=text)
