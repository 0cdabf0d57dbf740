"""`lfm-convert [convert] MODEL --target T --quant Q`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from .. import pipeline
from ..units import format_size, parse_size
from .console import (
    Context,
    Json,
    Model,
    Offline,
    OnnxMoe,
    Refine,
    Revision,
    Target,
    given,
    output,
    print_json,
    watched,
)
from .gguf_options import (
    Imatrix,
    Metadata,
    OutputTensorType,
    Pre,
    Pure,
    SplitMaxSize,
    TensorType,
    TokenEmbeddingType,
    gguf_options,
)


def convert(
    target: Target,
    model: Model = None,
    quant: Annotated[
        str | None,
        typer.Option(
            "--quant", "-q", help="Quants, comma-separated, or all; default: the target's.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Folder to write; default: ./MODEL-TARGET.", show_default=False)
    ] = None,
    refine: Refine = False,
    onnx_moe: OnnxMoe = None,
    context: Context = None,
    imatrix: Imatrix = None,
    pure: Pure = False,
    token_embedding_type: TokenEmbeddingType = None,
    output_tensor_type: OutputTensorType = None,
    tensor_type: TensorType = None,
    metadata: Metadata = None,
    pre: Pre = None,
    split_max_size: SplitMaxSize = None,
    strict: Annotated[bool, typer.Option("--strict", help="Refuse encodings other than the quant names.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace artifacts that are there already.")] = False,
    jobs: Annotated[
        int | None, typer.Option("--jobs", "-j", min=1, help="Workers; default: all cores.", show_default=False)
    ] = None,
    max_memory: Annotated[
        str | None, typer.Option("--max-memory", help="Peak memory of writing, like 1GB.", show_default=False)
    ] = None,
    max_size: Annotated[
        str | None, typer.Option("--max-size", help="Largest artifact allowed, like 4.8GB.", show_default=False)
    ] = None,
    no_validate: Annotated[bool, typer.Option("--no-validate", help="Write only; do not run the artifacts.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Write the artifacts of one target, then run each and compare it with the checkpoint."""
    options = given(
        refine=refine,
        onnx_moe=onnx_moe,
        context=context,
        **gguf_options(
            imatrix=imatrix,
            pure=pure,
            token_embedding_type=token_embedding_type,
            output_tensor_type=output_tensor_type,
            tensor_type=tensor_type,
            metadata=metadata,
            pre=pre,
            split_max_size=split_max_size,
        ),
    )
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, progress=progress)
        done = pipeline.convert(
            graph,
            target=target,
            quant=quant,
            out=out,
            options=options,
            strict=strict,
            overwrite=overwrite,
            jobs=jobs,
            max_memory=parse_size(max_memory) if max_memory else None,
            max_size=parse_size(max_size) if max_size else None,
            validate_after=not no_validate,
            progress=progress,
        )
    if as_json:
        print_json(_to_json(done))
        return done.report.exit_code if done.report else 0
    for artifact in done.artifacts:
        output.print(f"{artifact.path}  {format_size(artifact.size_bytes)}", soft_wrap=True)
    if done.report is None:
        return 0
    from ...validate.report import print_table

    print_table(done.report, output)
    return done.report.exit_code


def _to_json(done: pipeline.Converted) -> dict[str, object]:
    report = done.report.to_json() if done.report else {"artifacts": []}
    return {
        "folder": str(done.folder),
        "artifacts": [
            {
                "path": str(a.path),
                "target": a.target,
                "quant": a.quant,
                "size_bytes": a.size_bytes,
                "files": [str(f) for f in a.files],
            }
            for a in done.artifacts
        ],
        "validation": report,
    }
