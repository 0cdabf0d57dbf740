"""Options of what compares artifacts with a checkpoint: what they are run on, with how much of the machine, and the
lines they are held to.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.units import parse_size
from ...validate.lines import Lines, parse_fraction
from ..recipe.reading import load_recipe
from ..source import SETTINGS_FILE
from .budget_options import RecipeFile

Reference = Annotated[
    str | None,
    typer.Option(
        "--reference",
        "-r",
        metavar="MODEL",
        help="The checkpoint they came from; default: the one at hand here.",
        show_default=False,
    ),
]
OtherReference = Annotated[
    bool, typer.Option("--other-reference", help="Compare with a checkpoint they were not made from.")
]
Suite = Annotated[
    str | None,
    typer.Option(
        "--suite",
        metavar="NAME",
        help="Which of the shared prompts: smoke (default of convert) or standard (of the others).",
        show_default=False,
    ),
]
Prompts = Annotated[
    Path | None,
    typer.Option(
        "--prompts", metavar="FILE", help="JSON lines of text, messages or ids instead of a suite.", show_default=False
    ),
]
TextFile = Annotated[
    Path | None,
    typer.Option(
        "--text", metavar="FILE", help="A text instead of a suite, read as llama-perplexity does.", show_default=False
    ),
]
Chunks = Annotated[
    int | None, typer.Option("--chunks", min=1, metavar="N", help="Chunks of --text; default: all.", show_default=False)
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, metavar="N", help="Threads of each runtime; default: all cores.", show_default=False
    ),
]
TimeLimit = Annotated[
    float | None,
    typer.Option(
        "--time-limit",
        min=1,
        metavar="SECONDS",
        help="Seconds for running each artifact; default: by its size.",
        show_default=False,
    ),
]
MaxMemory = Annotated[
    str | None,
    typer.Option(
        "--max-memory",
        metavar="SIZE",
        help="What each process may hold beside the files it maps, like 2GB.",
        show_default=False,
    ),
]
ReferenceFolder = Annotated[
    Path | None,
    typer.Option(
        "--reference-cache",
        metavar="DIR",
        help="Keep the checkpoint's own run there, and take it from there the next time, at hand or not.",
        show_default=False,
    ),
]
MaxKld = Annotated[
    float | None,
    typer.Option(
        "--max-kld", metavar="NATS", help="Fail an artifact of a larger mean KL divergence.", show_default=False
    ),
]
MinTop1 = Annotated[
    str | None,
    typer.Option(
        "--min-top1",
        metavar="FRACTION",
        help="Fail one whose likeliest token is the checkpoint's less often; 0.9 or 90%.",
        show_default=False,
    ),
]
MaxPplChange = Annotated[
    str | None,
    typer.Option(
        "--max-ppl-change",
        metavar="FRACTION",
        help="Fail one whose perplexity differs by more; 0.05 or 5%.",
        show_default=False,
    ),
]
MinCosine = Annotated[
    float | None,
    typer.Option(
        "--min-cosine",
        metavar="COSINE",
        help="Fail one whose vectors' mean cosine with the checkpoint's is less.",
        show_default=False,
    ),
]


def comparison_options(
    *,
    suite: Suite = None,
    prompts: Prompts = None,
    text: TextFile = None,
    chunks: Chunks = None,
    threads: Threads = None,
    time_limit: TimeLimit = None,
    max_memory: MaxMemory = None,
    reference_cache: ReferenceFolder = None,
) -> dict[str, Any]:
    """The options as `pipeline.validate` takes them; without a suite, if none is given."""
    return {
        **({} if suite is None else {"suite": suite}),
        "prompts": prompts,
        "text": text,
        "n_chunks": chunks,
        "threads": threads,
        "time_limit_s": time_limit,
        "max_memory": None if max_memory is None else parse_size(max_memory),
        "reference_cache": reference_cache,
    }


def line_options(
    *,
    max_kld: MaxKld = None,
    min_top1: MinTop1 = None,
    max_ppl_change: MaxPplChange = None,
    min_cosine: MinCosine = None,
    recipe: RecipeFile = None,
) -> Lines:
    """The lines that a team draws: those of its recipe, and in their place the options of this command.

    Raises: UsageError for one that means nothing; InputError for a recipe that cannot be read.
    """
    if recipe is None and Path(SETTINGS_FILE).is_file():
        recipe = load_recipe(Path(SETTINGS_FILE))
    found = recipe.lines if recipe else Lines()
    given = Lines(
        max_kld=max_kld,
        min_top1=None if min_top1 is None else parse_fraction(min_top1),
        max_ppl_change=None if max_ppl_change is None else parse_fraction(max_ppl_change),
        min_cosine=min_cosine,
    )
    return found.replaced_by(replace(given, is_asked=bool(given)))
