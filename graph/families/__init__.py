"""The families of models this house can say: one file each, and its line here."""

from __future__ import annotations

from . import (
    gemma3,
    granite,
    granitemoe,
    granitemoehybrid,
    lfm2,
    lfm2_moe,
    lfm3,
    llama,
    phi3,
    qwen3,
    qwen3_moe,
    smollm3,
)
from .family import Family

FAMILIES: tuple[Family, ...] = (
    lfm2.FAMILY,
    lfm2_moe.FAMILY,
    lfm3.FAMILY,
    qwen3.FAMILY,
    qwen3_moe.FAMILY,
    llama.FAMILY,
    smollm3.FAMILY,
    granite.FAMILY,
    granitemoe.FAMILY,
    granitemoehybrid.FAMILY,
    gemma3.FAMILY,
    phi3.FAMILY,
)


def find_family(model_type: object) -> Family | None:
    """The family that a config's `model_type` belongs to; None if there is none."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)
