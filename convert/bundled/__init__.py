"""The small trained checkpoints that travel in the wheel, for demos, tests and a first try without a download.

All are ordinary Hugging Face checkpoint folders, made by `making/`, which is not part of the wheel.
"""

from __future__ import annotations

from pathlib import Path

# Folder -> the model's name.
NAMES = {"moe": "LFM2-Tiny-MoE", "dense": "LFM2-Tiny", "lfm3": "LFM3-Tiny"}
# What a user writes for one.
CHOICES = " / ".join(f"bundled:{name}" for name in NAMES)


def path(name: str = "moe") -> Path:
    """The folder of a shipped checkpoint, one of `NAMES`.

    Raises: ValueError for another name.
    """
    if name not in NAMES:
        raise ValueError(f"there is no bundled model '{name}': expected {' or '.join(NAMES)}")
    return Path(__file__).resolve().parent / name
