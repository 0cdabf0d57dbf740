"""Options of the targets, as `convert` and `plan` take them; those of GGUF mean what they mean in llama.cpp."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from ..units import parse_size

Refine = Annotated[
    bool, typer.Option("--refine", help="Search for a lower error in the same format and size; takes longer.")
]
OnnxMoe = Annotated[
    str | None,
    typer.Option(
        "--onnx-moe",
        help="Experts in ONNX: unrolled (any runtime) or qmoe (ONNX Runtime 1.31 on CPU).",
        show_default=False,
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context", help="Positions the caches hold, where the file fixes them; default: 4096.", show_default=False
    ),
]
EtMoe = Annotated[
    str | None,
    typer.Option(
        "--et-moe",
        help="Experts in ExecuTorch: experts (a delegate each) or moe_ffn (one operator a layer, executorch 1.5).",
        show_default=False,
    ),
]
ExternalWeights = Annotated[
    bool, typer.Option("--external-weights", help="ExecuTorch: weights in a .ptd file beside the program.")
]
EtBackend = Annotated[
    str | None,
    typer.Option(
        "--et-backend",
        help="ExecuTorch: xnnpack (any CPU), coreml or vulkan; the last two are written but not run here.",
        show_default=False,
    ),
]
Imatrix = Annotated[
    str | None,
    typer.Option(
        "--imatrix", metavar="FILE", help="GGUF, MLX, ONNX: importance matrix, .gguf or .dat.", show_default=False
    ),
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


def target_options(
    *,
    refine: Refine = False,
    onnx_moe: OnnxMoe = None,
    context: Context = None,
    et_moe: EtMoe = None,
    external_weights: ExternalWeights = False,
    et_backend: EtBackend = None,
    imatrix: Imatrix = None,
    pure: Pure = False,
    token_embedding_type: TokenEmbeddingType = None,
    output_tensor_type: OutputTensorType = None,
    tensor_type: TensorType = None,
    metadata: Metadata = None,
    pre: Pre = None,
    split_max_size: SplitMaxSize = None,
) -> dict[str, Any]:
    """The options that were set, as fields of the target."""
    given = {
        "refine": refine,
        "onnx_moe": onnx_moe,
        "context": context,
        "et_moe": et_moe,
        "external_weights": external_weights,
        "et_backend": et_backend,
        "imatrix": imatrix,
        "pure": pure,
        "token_embedding_type": token_embedding_type,
        "output_tensor_type": output_tensor_type,
        "tensor_type": tuple(tensor_type or ()),
        "metadata": tuple(metadata or ()),
        "pre": pre,
        "split_max_size": parse_size(split_max_size) if split_max_size else None,
    }
    return {name: value for name, value in given.items() if value not in (None, False, ())}
