"""`lfm-convert plan MODEL --target T --quant Q`."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from .. import pipeline
from ..plans import Plan
from ..units import format_size
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


def plan(
    target: Target,
    model: Model = None,
    quant: Annotated[
        str | None, typer.Option("--quant", "-q", help="Quants, comma-separated; default: all.", show_default=False)
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
    strict: Annotated[bool, typer.Option("--strict", help="Fail if a tensor would fall back.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Say what would be written, to the byte, without reading a weight; config.json is enough."""
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
        graph = pipeline.open_model(model, revision=revision, offline=offline, weights=False, progress=progress)
    plans = pipeline.plan(graph, target=target, quant=quant or "all", options=options)
    for each in plans:
        if strict:
            each.refuse_fallbacks()
    if as_json:
        objects = [each.to_json() for each in plans]
        print_json(objects[0] if len(objects) == 1 else objects)
        return 0
    output.print(f"{graph.name}: {graph.n_parameters:,} parameters, {graph.config.n_layers} layers")
    output.print(_table(plans))
    for each in plans:
        for fallback in each.fallbacks:
            output.print(
                f"{each.quant}: '{fallback.tensor}' as {fallback.used} instead of {fallback.wanted}: {fallback.reason}"
            )
    for note in dict.fromkeys(note for each in plans for note in each.notes):
        output.print(note)
    return 0


def _table(plans: tuple[Plan, ...]) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("quant", "file"):
        table.add_column(heading)
    for heading in ("size", "bytes", "tensor bytes", "tensors", "fallbacks", "peak memory"):
        table.add_column(heading, justify="right")
    for each in plans:
        table.add_row(
            each.quant,
            each.main_file,
            format_size(each.total_bytes),
            f"{each.total_bytes:,}",
            f"{each.tensor_bytes:,}",
            str(len(each.tensors)),
            str(len(each.fallbacks)),
            format_size(each.peak_memory_bytes()),
        )
    return table
