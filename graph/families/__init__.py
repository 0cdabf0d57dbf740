"""The families of models this house can say: one file each, and its line here."""

from __future__ import annotations

from . import lfm2, lfm2_moe, lfm3
from .family import Family

FAMILIES: tuple[Family, ...] = (lfm2.FAMILY, lfm2_moe.FAMILY, lfm3.FAMILY)


def find_family(model_type: object) -> Family | None:
    """The family that a config's `model_type` belongs to; None if there is none."""
    return next((family for family in FAMILIES if family.model_type == model_type), None)
