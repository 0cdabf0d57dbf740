"""Options of what compares artifacts with a checkpoint: what they are run on, and with how much of the machine."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

Reference = Annotated[
    str | None, typer.Option("--reference", "-r", help="The checkpoint they came from.", show_default=False)
]
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
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, help="Threads of each runtime; default: all cores.", show_default=False),
]
TimeLimit = Annotated[float, typer.Option("--time-limit", min=1, help="Seconds for each artifact.")]


def comparison_options(
    *,
    suite: Suite = "standard",
    prompts: Prompts = None,
    text: TextFile = None,
    chunks: Chunks = None,
    threads: Threads = None,
    time_limit: TimeLimit = 1800,
) -> dict[str, Any]:
    """The options as `pipeline.validate` takes them."""
    return {
        "suite": suite,
        "prompts": prompts,
        "text": text,
        "n_chunks": chunks,
        "threads": threads,
        "time_limit_s": time_limit,
    }
