"""`lfm-convert lora MODEL --adapter FOLDER -o adapter.gguf`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ...graph.adapters.adapter import adapting
from ...graph.adapters.merging import read_adapters
from ...graph.errors import UsageError
from ...graph.files import disk_error, flush
from ...graph.units import format_size
from .. import pipeline
from .console import Json, Model, Offline, Revision, output, print_json, watched

_SUFFIX = ".gguf"


def lora(
    adapter: Annotated[
        Path, typer.Option("--adapter", metavar="FOLDER", help="LoRA adapter of PEFT.", show_default=False)
    ],
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="GGUF file to write.", show_default=False)],
    model: Model = None,
    quant: Annotated[str, typer.Option("--quant", "-q", metavar="NAME", help="F16, BF16 or F32.")] = "F16",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there already.")] = False,
    revision: Revision = None,
    offline: Offline = False,
    as_json: Json = False,
) -> int:
    """Write an adapter as a file of its own, which llama.cpp adds to any GGUF of its base with --lora."""
    from ...targets.gguf.lora import TYPES, lora_file

    out, folder = out.expanduser(), adapter.expanduser()
    if out.suffix != _SUFFIX or quant.upper() not in TYPES:
        raise UsageError(f"{out}, {quant}: expected a file that ends in {_SUFFIX}, and one of {', '.join(TYPES)}")
    if out.resolve().parent == folder.resolve():
        raise UsageError(f"{out}: lies in the adapter's own folder; choose another --out")
    if out.exists() and (out.is_dir() or not overwrite):
        raise UsageError(f"{out}: already exists; --overwrite replaces it")
    with watched() as progress:
        graph = pipeline.open_model(model, revision=revision, offline=offline, weights=False, progress=progress)
        (read,) = read_adapters(graph, adapting([folder]).choices)
        for note in read.notes:
            progress.note(f"{read.adapter.label}: {note}")
        file = lora_file(graph, read, encoding=quant.upper())
    part = out.with_name(f".{out.name}.lfm-partial")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        n_bytes = file.write(part)
        flush(part)
        part.replace(out)
    except OSError as error:
        raise disk_error(error, out) from error
    finally:
        part.unlink(missing_ok=True)
    if as_json:
        print_json({"path": str(out), "size_bytes": n_bytes, "tensors": 2 * len(file.weights), "quant": quant.upper()})
    else:
        output.print(f"{out}  {format_size(n_bytes)}", soft_wrap=True)
    return 0
