"""What a runtime on the CPU holds in memory while it runs an artifact, by what it grows with."""

from __future__ import annotations

from dataclasses import dataclass

# How many tokens of a prompt are read at a time: llama.cpp's and mlx-lm's default.
PORTION_TOKENS = 512


@dataclass(frozen=True, kw_only=True)
class RunMemory:
    """Units: bytes.

    `weights` are held whatever is run: files that stay mapped, copies that kernels want in another order, vocabulary.
    Keys and values are numbers of `cache_itemsize`, in `cache_copies`. Each token that is read together with others
    takes `per_activation` for each number of the widest layer, and `per_score` for each head and position it looks at.
    """

    weights: int
    cache_itemsize: int = 2
    cache_copies: int = 1
    per_activation: float = 0.0
    per_score: float = 0.0
