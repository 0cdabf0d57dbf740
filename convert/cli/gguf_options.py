"""Options of the GGUF target, as `convert` and `plan` take them; the meaning is llama.cpp's."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..units import parse_size

Imatrix = Annotated[
    str | None,
    typer.Option("--imatrix", metavar="FILE", help="GGUF, MLX: importance matrix, .gguf or .dat.", show_default=False),
]
Pure = Annotated[bool, typer.Option("--pure", help="GGUF: every matrix in the quant's own type, no mixture.")]
TokenEmbeddingType = Annotated[
    str | None,
    typer.Option("--token-embedding-type", metavar="TYPE", help="GGUF: of the embedding.", show_default=False),
]
OutputTensorType = Annotated[
    str | None, typer.Option("--output-tensor-type", metavar="TYPE", help="GGUF: of the head.", show_default=False)
]
TensorType = Annotated[
    list[str] | None,
    typer.Option(
        "--tensor-type",
        metavar="ROLE_OR_REGEX=TYPE",
        help="GGUF: of tensors; repeatable, first wins.",
        show_default=False,
    ),
]
Metadata = Annotated[
    list[str] | None,
    typer.Option("--metadata", metavar="KEY=VALUE", help="GGUF: overrides one; repeatable.", show_default=False),
]
Pre = Annotated[
    str | None,
    typer.Option("--pre", metavar="NAME", help="GGUF: llama.cpp's name of the pre-tokenizer.", show_default=False),
]
SplitMaxSize = Annotated[
    str | None,
    typer.Option(
        "--split-max-size", metavar="SIZE", help="GGUF: start a new file beyond this, like 2GB.", show_default=False
    ),
]


def gguf_options(
    *,
    tensor_type: list[str] | None,
    metadata: list[str] | None,
    split_max_size: str | None,
    **plain: Any,
) -> dict[str, Any]:
    """The options as fields of the target."""
    return {
        **plain,
        "tensor_type": tuple(tensor_type or ()),
        "metadata": tuple(metadata or ()),
        "split_max_size": parse_size(split_max_size) if split_max_size else None,
    }
