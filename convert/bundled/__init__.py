"""The two small trained checkpoints that travel in the wheel, for demos, tests and a first try without a download.

`path("moe")` is LFM2-Tiny-MoE, `path("dense")` is LFM2-Tiny; both are ordinary Hugging Face checkpoint folders.
`train.py` in this folder made them from `corpus.py` and `tokenizer.py`; nothing of that is imported here.
"""

from __future__ import annotations

from pathlib import Path

NAMES = ("moe", "dense")


def path(name: str = "moe") -> Path:
    """Return the folder of the shipped checkpoint `name`.

    Raises:
        ValueError: `name` is not one of `NAMES`.
    """
    if name not in NAMES:
        raise ValueError(f"There is no bundled model {name!r}; the wheel ships {' and '.join(NAMES)}.")
    return Path(__file__).resolve().parent / name
