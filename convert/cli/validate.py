"""`lfm-convert validate ARTIFACT… --reference MODEL`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from .. import pipeline
from ..files import replace_text
from ..units import parse_size
from .console import Offline, Revision, output, print_json, watched


def validate(
    artifacts: Annotated[
        list[Path], typer.Argument(help="Artifact files, or folders with their manifest.", show_default=False)
    ],
    reference: Annotated[
        str | None, typer.Option("--reference", "-r", help="The checkpoint they came from.", show_default=False)
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            "--prompts", help="JSON lines of text, messages or ids; default: the shared set.", show_default=False
        ),
    ] = None,
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
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Run artifacts in their runtimes and compare each with the checkpoint."""
    from ...validate.report import print_table, write_html

    with watched() as progress:
        graph = pipeline.open_model(reference, revision=revision, offline=offline, progress=progress)
        report = pipeline.validate(
            artifacts,
            reference=graph,
            prompts=prompts,
            max_size=parse_size(max_size) if max_size else None,
            threads=threads,
            time_limit_s=time_limit,
            progress=progress,
        )
    pipeline.record(report)
    if html is not None:
        write_html(report, html)
    if json_path == "-":
        print_json(report.to_json())
        return report.exit_code
    if json_path is not None:
        replace_text(Path(json_path), json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n")
    print_table(report, output)
    return report.exit_code
