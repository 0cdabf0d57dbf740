"""What transformers does not load, or loads as something else, of what servers run.

Source: transformers 5.23 `integrations/compressed_tensors.py`, whose experts get codes, scales and a shape and nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from ...graph.blocks import Mixture
from ...graph.config import ModelConfig
from ...graph.errors import BackendError, UsageError
from ...graph.families.places import EXPERT
from ...graph.roles import EXPERTS, Address
from ...graph.tensor import TensorView
from ...quantize.encoding import Encoding
from ...quantize.encodings.ct_base import CtEncoding
from ...quantize.encodings.ct_fp4 import MxFp4
from ...quantize.encodings.ct_fp8 import ChannelFp8
from ...quantize.encodings.ct_int import AsymmetricInt, GroupInt
from ..encoded import encoding_of

_NOT_RUN = "not run here: transformers 5.23 does not decode"


def refuse_inexpressible(config: ModelConfig) -> None:
    """Raises UsageError for experts that have no module of their own, by which a config could name their scheme."""
    family = config.family
    if any(EXPERT not in family.tensor_name(role, 0) for role in EXPERTS if config.of_kind(Mixture)):
        raise UsageError(
            f"compressed-tensors stores experts one by one, and those of {family.name} are read from one tensor: choose "
            "another target"
        )


def refuse_unloadable(weights: Mapping[Address, TensorView]) -> None:
    """Raises BackendError for weights that transformers does not decode, or decodes wrongly."""
    unread = [name for encoding in _of_experts(weights) if (name := _unread(encoding)) is not None]
    if unread:
        raise BackendError(f"{_NOT_RUN} experts of mixtures that are {unread[0]}; vLLM does, on a GPU")
    schemes = {encoding.name for view in weights.values() if isinstance(encoding := encoding_of(view), CtEncoding)}
    if decodes_first(weights) and len(schemes) > 1:
        raise BackendError(f"{_NOT_RUN} zero points of groups of several sizes; vLLM does")


def decodes_first(weights: Mapping[Address, TensorView]) -> bool:
    """Whether weights must be decoded while they are loaded: of zero points transformers expects another shape, else."""
    return any(isinstance(encoding_of(view), AsymmetricInt) for view in weights.values())


def _of_experts(weights: Mapping[Address, TensorView]) -> Iterable[Encoding | None]:
    return (encoding_of(view) for (role, _), view in weights.items() if role in EXPERTS)


def _unread(encoding: Encoding | None) -> str | None:
    if isinstance(encoding, AsymmetricInt):
        return "integers with zero points"
    if isinstance(encoding, CtEncoding) and not isinstance(encoding, GroupInt | ChannelFp8 | MxFp4):
        return {"ct_int8": "8-bit integers", "ct_fp8_block": "E4M3 in squares", "ct_nvfp4": "NVFP4"}[encoding.stem]
    return None
