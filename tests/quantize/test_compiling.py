"""A first run on a machine compiles, and says so; a second one does not."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RUN = """
import sys
from lfm_convert.quantize.compiling import told_of_compiling
with told_of_compiling(print):
    from lfm_convert.quantize.encodings._jit import nearest, kernel
    import numpy as np
    print(nearest(np.float32(2.4)))
    @kernel
    def elsewhere(value):
        return value + 1
    elsewhere(1)
from lfm_convert.quantize.encodings._jit import half
half(np.float32(1.0))
"""


def test_compiling_is_told_once(tmp_path: Path) -> None:
    """Not of functions of others, and to nobody who does not listen."""
    (tmp_path / "run.py").write_text(RUN)
    environment = {**os.environ, "XDG_CACHE_HOME": str(tmp_path / "cache")}
    said = [
        subprocess.run(
            [sys.executable, "run.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
        ).stdout.splitlines()
        for _ in range(2)
    ]
    (compiling, result), (again,) = said
    assert compiling.startswith("compiling the kernels of jit for this processor, once: they are kept in ")
    assert str(tmp_path / "cache") in compiling and result == again == "2"
