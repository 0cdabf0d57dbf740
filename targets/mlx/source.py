"""An MLX folder of any writer as a source: its model as a weight graph, whose weights are what MLX decodes them to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ...graph.config import CONFIG_FILE
from ...graph.dtypes import DType
from ...graph.errors import InputError
from ...graph.families import find_family
from ...graph.graph import WeightGraph
from ...graph.json_text import read_object
from ...graph.opening import graph_of, model_name
from ...graph.source.assets import read_assets
from ...graph.source.checkpoint import Checkpoint, has_weights
from ...graph.source.config_file import load_config
from ...graph.source.tokenizer import TOKENIZER_FILE, Tokenizer
from ...graph.tensor import Shape, TensorView
from ...quantize.encoding import Encoding
from ...quantize.encodings.mlx_pack import GroupEncoding
from ...quantize.stored import StoredPart
from ..encoded import SourceTensor
from ..target import NotJudged
from .folder import has_mlx_arrays
from .parameters import is_packed
from .reader import weights_of
from .recognise import encodings_of, quant_of

# Of a config, what the weights are no longer once they are decoded; types that a loader casts to, whatever they are in.
_STALE = ("quantization", "quantization_config", "torch_dtype")


def open_source(path: Path, *, name: str | None = None) -> WeightGraph | None:
    """The model of a folder; None of one that holds none as MLX stores it.

    Raises: InputError for a folder that is damaged, not whole, or holds arrays that are not decoded here.
    """
    if not (path / CONFIG_FILE).is_file() or not has_weights(path):
        return None
    checkpoint, raw = Checkpoint(path), read_object(path / CONFIG_FILE)
    if not has_mlx_arrays(checkpoint.tensors, find_family(raw.get("model_type"))):
        return None
    config, said = load_config(path), raw.get("quantization")
    if not isinstance(said, Mapping) and any(is_packed(name, checkpoint.tensors) for name in checkpoint.tensors):
        return None  # MLX itself takes no array for packed in a folder whose config says nothing of it
    dtype = config.float_type

    def view_of(parameter: str, shape: Shape, encoding: Encoding, parts: tuple[StoredPart, ...]) -> TensorView:
        return SourceTensor(parameter, shape, encoding, parts, _float_type(encoding, dtype))

    try:
        views = weights_of(config, checkpoint, view_of)
    except NotJudged as error:
        raise InputError(f"{path}: {error}") from None
    encodings = encodings_of(views)
    has_codes = any(isinstance(encoding, GroupEncoding) for encoding in encodings.values())
    kept = {key: value for key, value in config.raw.items() if key not in _STALE}
    tokenizer = path / TOKENIZER_FILE
    return graph_of(
        replace(config, raw={"dtype": config.dtype, **kept}),
        views,
        name=name or model_name(path),
        folder=path,
        tokenizer=Tokenizer(tokenizer) if tokenizer.is_file() else None,
        assets=read_assets(path),
        files=checkpoint,
        quantised_as=f"MLX {quant_of(encodings, config.family)}" if has_codes else None,
        notes=checkpoint.notes,
    )


def _float_type(encoding: Encoding, usual: DType) -> DType:
    """That of a float or of scales; where scales are bytes, that of the model."""
    if not isinstance(encoding, GroupEncoding):
        return DType(encoding.name)
    return DType(encoding.floats.name) if encoding.mode == "affine" else usual
