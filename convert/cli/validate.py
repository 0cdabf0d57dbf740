"""`lfm-convert validate ARTIFACT… --reference MODEL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import pipeline
from ..errors import UsageError
from ..files import replace_text
from ..units import parse_size
from .console import Offline, Revision, output, print_json, watched

Suite = Annotated[str, typer.Option("--suite", help="Which of the shared prompts: smoke or standard.")]
Prompts = Annotated[
    Path | None,
    typer.Option("--prompts", help="JSON lines of text, messages or ids instead of a suite.", show_default=False),
]
TextFile = Annotated[
    Path | None,
    typer.Option("--text", help="A text instead of a suite, read as llama-perplexity does.", show_default=False),
]
Chunks = Annotated[
    int | None, typer.Option("--chunks", min=1, help="Chunks of --text; default: all.", show_default=False)
]


def validate(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifact files, or folders with their manifest.", show_default=False)
    ],
    reference: Annotated[
        str | None, typer.Option("--reference", "-r", help="The checkpoint they came from.", show_default=False)
    ] = None,
    suite: Suite = "standard",
    prompts: Prompts = None,
    text: TextFile = None,
    chunks: Chunks = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Largest artifact allowed, like 4.8GB.", show_default=False)
    ] = None,
    threads: Annotated[
        int | None,
        typer.Option("--threads", min=1, help="Threads of each runtime; default: all cores.", show_default=False),
    ] = None,
    time_limit: Annotated[float, typer.Option("--time-limit", min=1, help="Seconds for each artifact.")] = 1800,
    json_path: Annotated[
        str | None,
        typer.Option("--json", help="Write the result as JSON to this file; '-' is stdout.", show_default=False),
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", help="Write a self-contained HTML page.", show_default=False)
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, a case for each gate.", show_default=False)
    ] = None,
    markdown: Annotated[
        Path | None, typer.Option("--markdown", help="Write a summary for a pull request.", show_default=False)
    ] = None,
    baseline: Annotated[
        Path | None,
        typer.Option("--baseline", help="Also hold artifacts to the results stored here.", show_default=False),
    ] = None,
    update: Annotated[
        bool, typer.Option("--update-baseline", help="Store the results of those that pass in --baseline.")
    ] = False,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Run artifacts in their runtimes and compare each with the checkpoint."""
    from ...validate.baseline import hold_to_baseline, load_baseline, update_baseline
    from ...validate.formats import write_junit, write_markdown
    from ...validate.report import print_table, write_html

    if update and baseline is None:
        raise UsageError("--update-baseline needs --baseline FILE")
    stored = load_baseline(baseline) if baseline and not update else {}
    with watched() as progress:
        graph = pipeline.open_model(reference, revision=revision, offline=offline, progress=progress)
        report = pipeline.validate(
            artifacts,
            reference=graph,
            suite=suite,
            prompts=prompts,
            text=text,
            n_chunks=chunks,
            max_size=parse_size(max_size) if max_size else None,
            threads=threads,
            time_limit_s=time_limit,
            progress=progress,
        )
    report = hold_to_baseline(report, stored)
    pipeline.record(report)
    if baseline is not None and update:
        update_baseline(baseline, report)
    for path, write in ((html, write_html), (junit, write_junit), (markdown, write_markdown)):
        if path is not None:
            write(report, path)
    if json_path == "-":
        print_json(report.to_json())
        return report.exit_code
    if json_path is not None:
        replace_text(Path(json_path), json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    print_table(report, output)
    return report.exit_code
