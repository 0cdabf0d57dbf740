"""What stands in for a matrix while a region is lowered."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from lfm_convert.targets.executorch.constants import Matrix
from lfm_convert.targets.executorch.stored import Piece
from lfm_convert.targets.executorch.templates import Templates

PEAK = Path("/proc/self/clear_refs")  # 5 written to it starts the high-water mark anew
N_ROWS, N_COLUMNS = 65536, 2048


@pytest.mark.skipif(not PEAK.exists(), reason="the system does not tell what a process held at most")
@pytest.mark.parametrize("encoding", ["F32", "et_int4"])
def test_is_never_in_memory(encoding: str) -> None:
    """A head of 134 million weights is lowered in a fraction of a byte for each: in less than its scales alone take."""
    templates = Templates(None, longest=64, data_file=None)  # type: ignore[arg-type]
    _lower_head(templates, encoding, 256, 64)  # loads what a first lowering loads
    PEAK.write_text("5")
    before = _peak_bytes()
    keys = _lower_head(templates, encoding, N_ROWS, N_COLUMNS)
    assert _peak_bytes() - before < 0.5 * N_ROWS * N_COLUMNS
    assert len(set(keys)) == (1 if encoding == "F32" else 2)


def _lower_head(templates: Templates, encoding: str, n_rows: int, n_columns: int) -> tuple[str, ...]:
    """Lowers a head around stand-ins. Returns their names."""
    n = n_rows * n_columns
    parts = [("values", 4 * n, "<f4")] if encoding == "F32" else [("values", n // 2, "u1"), ("scales", n // 16, "<u2")]
    pieces = tuple(Piece(label, Path("unread"), 0, n_bytes, np.dtype(kind)) for label, n_bytes, kind in parts)
    shapes = [(1, n_columns), (1, 1), (n_columns,)]
    made = templates._lower("head", shapes, [Matrix(encoding, (n_rows, n_columns), pieces)])
    blob = made.lowered.processed_bytes
    assert len(blob) < 10_000 and all(blob.count(key.encode()) == 1 for key in made.keys)
    return made.keys


def _peak_bytes() -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("VmHWM")).split()[1]) * 1024
