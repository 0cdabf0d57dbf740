"""Two MLX folders array by array."""

from __future__ import annotations

import json
from pathlib import Path


def assert_equal(theirs: Path, mine: Path) -> None:
    """Every name, type and bit, and which file each is in."""
    import mlx.core as mx

    expected, found = (mx.load(str(folder / "model.safetensors")) for folder in (theirs, mine))
    assert sorted(found) == sorted(expected)
    for name, array in expected.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape), name
        assert mx.array_equal(found[name].view(mx.uint8), array.view(mx.uint8)).item(), name
    homes = [
        json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"] for folder in (theirs, mine)
    ]
    assert homes[0] == homes[1]
