"""`lfm-convert [convert] MODEL --target T --quant Q`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ...graph.adapters.adapter import Adapting
from ...graph.errors import UsageError
from ...graph.graph import WeightGraph
from ...graph.units import format_size
from ...targets.target import get_target
from ...validate.budgets import Budgets
from ...validate.lines import Lines
from .. import pipeline
from ..manifest import MANIFEST_FILE, own_files
from ..several import convert_several, folders, shares
from .adapter_options import adapter_options
from .budget_options import budget_options
from .comparison_options import comparison_options, line_options
from .console import Model, Offline, Quant, Revision, Targets, output, watched
from .option_groups import grouped
from .report_options import Reports, report_options
from .target_options import target_options
from .trade_off import print_trade_off
from .tuning_options import Tuning, tuning_options


@grouped(
    options=target_options,
    tuning=tuning_options,
    adapters=adapter_options,
    budgets=budget_options,
    comparison=comparison_options,
    lines=line_options,
    reports=report_options,
)
def convert(
    *,
    target: Targets,
    model: Model = None,
    quant: Quant = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            metavar="FOLDER",
            help="Folder to write; of several targets the one with a folder for each. Default: ./MODEL-TARGET.",
            show_default=False,
        ),
    ] = None,
    options: dict[str, Any],
    tuning: Tuning,
    adapters: Adapting,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse encodings other than the quant names.")] = False,
    outfile: Annotated[
        Path | None,
        typer.Option(
            "--outfile",
            metavar="FILE",
            help="GGUF, ExecuTorch, Core ML: the file to write; {ftype} in it is the quant.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there already.")] = False,
    skip_existing: Annotated[
        bool, typer.Option("--skip-existing", help="Leave artifacts that are there, if they are what would be written.")
    ] = False,
    resume: Annotated[
        bool,
        typer.Option("--resume", help="Go on where an interrupted run stopped; if interrupted, keep what is written."),
    ] = False,
    profile: Annotated[bool, typer.Option("--profile", help="Say where the time of writing went.")] = False,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", "-j", min=1, metavar="N", help="Workers; default: all cores.", show_default=False),
    ] = None,
    budgets: Budgets,
    no_validate: Annotated[bool, typer.Option("--no-validate", help="Write only; do not run the artifacts.")] = False,
    comparison: dict[str, Any],
    lines: Lines,
    reports: Reports,
    revision: Revision = None,
    offline: Offline = False,
) -> int:
    """Write artifacts of one target or several, then run each and compare it with the checkpoint."""
    if no_validate and (lines.is_asked or reports.needs_report):
        raise UsageError(
            "--no-validate compares nothing that could be reported or held to a line: leave one of them out"
        )
    out, options = _placed([share.target for share in shares(target)], out, outfile, options)
    wanted = shares(target, quant, {**options, **tuning.options}, max_bytes=budgets.max_size, tune=tuning.what)
    texts = [value for value in comparison.values() if isinstance(value, Path)]
    reports.check(read=texts)
    if reports.baseline is not None:  # which was made with the suite that releases are judged on
        comparison.setdefault("suite", "standard")
    comparison |= {**reports.held_to(), "lines": lines}
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, adapters=adapters, progress=progress)
        reports.check(read=[*texts, *_read_and_written(graph, folders(graph, wanted, out), options)])
        done = convert_several(
            graph,
            wanted,
            out=out,
            tune=tuning.what,
            strict=strict,
            overwrite=overwrite,
            skip_existing=skip_existing,
            resume=resume,
            jobs=jobs,
            max_memory=comparison.pop("max_memory"),
            budgets=budgets,
            validate_after=not no_validate,
            validate_all=bool(lines) or reports.is_asked,
            comparison=comparison,
            progress=progress,
        )
    reports.check(read=[file for artifact in done.artifacts for file in artifact.files])
    if done.report is None:
        reports.write_json(_to_json(done))
    else:
        reports.write(done.report, _to_json(done))
    if reports.takes_stdout:
        return done.report.exit_code if done.report else 0
    if profile:
        _print_profile(done.profile.seconds)
    for plan in done.plans:
        print_trade_off(plan, output)
    for artifact in done.artifacts:
        output.print(f"{artifact.path}  {format_size(artifact.size_bytes)}", soft_wrap=True)
    if done.report is None:
        return 0
    from ...validate.report import print_table

    print_table(done.report, output)
    return done.report.exit_code


def _read_and_written(graph: WeightGraph, places: Sequence[Path], options: Mapping[str, Any]) -> Iterator[Path]:
    """Files that no report may replace: the checkpoint's, its adapters', and of those to come the ones whose names are known."""
    yield from own_files(graph)
    for place in places:
        yield from (place / name for name in (MANIFEST_FILE, options.get("outfile")) if name)


def _placed(
    targets: Sequence[str], out: Path | None, outfile: Path | None, options: dict[str, Any]
) -> tuple[Path | None, dict[str, Any]]:
    """The folder to write, and the targets' options with the file's name if there is to be one, which only one can have.

    `--out model.gguf` means the file, too, unless there is a folder of that name; `--out model.mlpackage` always means the
    package. `~` is the user's home in both, as it is in MODEL: shells leave the one in `--out=~/models` alone.
    """
    out, outfile = (None if path is None else path.expanduser() for path in (out, outfile))
    if out is not None and outfile is not None:
        raise UsageError("give --out, a folder, or --outfile, a file, not both")
    target = get_target(targets[0])
    if len(targets) > 1:
        if outfile is not None:
            raise UsageError(f"--outfile {outfile}: is one file, for {len(targets)} targets: give --out, a folder")
    elif out is not None and out.suffix and out.suffix.lower() == target.file_suffix:
        outfile = out if target.is_package or not out.is_dir() else None
    if outfile is None:
        return out, options
    return outfile.parent, {**options, "outfile": outfile.name}


def _print_profile(seconds: Mapping[str, float]) -> None:
    """Where the threads' time went, most first; waiting for room is not work."""
    work = {stage: spent for stage, spent in seconds.items() if stage != "wait"}
    total = sum(work.values()) or 1.0
    for stage, spent in sorted(work.items(), key=lambda item: -item[1]):
        output.print(f"{stage:10} {spent:8.2f} s of threads  {spent / total:4.0%}", markup=False)
    if work:
        output.print(f"bottleneck: {max(work, key=work.__getitem__)}", markup=False)


def _to_json(done: pipeline.Converted) -> dict[str, object]:
    report = done.report.to_json() if done.report else {"artifacts": []}
    return {
        "folder": str(done.folder),
        "artifacts": [
            {
                "path": a.path.relative_to(done.folder).as_posix(),
                "target": a.target,
                "quant": a.quant,
                "size_bytes": a.size_bytes,
                "files": [file.relative_to(done.folder).as_posix() for file in a.files],
            }
            for a in done.artifacts
        ],
        "profile_seconds": done.profile.seconds,
        "validation": report,
    }
