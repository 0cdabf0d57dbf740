"""The same checkpoint gives the same bytes: for any workers, pieces, hash seed, locale, umask, threads and CPU."""

from __future__ import annotations

import json
import math
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from golden.cases import Case, cases
from golden.measure import measure
from lfm_convert.convert.manifest import MANIFEST_FILE
from lfm_convert.convert.pipeline import convert
from lfm_convert.graph.blocks import Attention, Rope
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.rotary import cosine, inverse_frequencies, rotary_angles, sine
from lfm_convert.quantize.encoding import get_encoding
from support.checkpoints import dense_25_config, make_checkpoint

_MEASURE = Path(__file__).parents[1] / "golden" / "measure.py"
# A CPU of 2003 to numba, of 2009 to numpy and OpenBLAS, with no vectors to torch; names that a CPU lacks are ignored.
_PLAIN_CPU = {
    "NUMBA_CPU_NAME": "generic",
    "NUMBA_CPU_FEATURES": "",
    "NPY_DISABLE_CPU_FEATURES": "X86_V4 X86_V3 AVX512_ICL AVX512_SPR AVX512F AVX512_SKX AVX2 FMA3",
    "OPENBLAS_CORETYPE": "Prescott",
    "ATEN_CPU_CAPABILITY": "default",
}
_SETTINGS = {
    "C locale": {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONHASHSEED": "1"},
    "Turkish, one thread": {"LC_ALL": "tr_TR.UTF-8", "PYTHONHASHSEED": "2", "TZ": "Asia/Tokyo", **dict.fromkeys(
        ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"), "1")},
    "plain CPU": _PLAIN_CPU,
}  # fmt: skip
_FEW = {
    "gguf:bundled:moe": "Q8_0,Q4_K_M",
    "onnx:fused-experts": "fp32,q4f16",
    "mlx:bundled:moe refine": "4bit,mxfp4",
}
_WHOLE = [f"{case.target}:{case.name}" for case in cases() if not case.is_slow]


def _case(name: str, quants: str = "") -> Case:
    (found,) = (case for case in cases() if f"{case.target}:{case.name}" == name)
    chosen = tuple(quants.split(",")) if quants else found.quants
    return Case(found.target, found.model, chosen, found.options)


def _in_process(settings: dict[str, str], *arguments: str) -> dict[str, Any]:
    """What another process with these variables measures."""
    command = [sys.executable, str(_MEASURE), *arguments]
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    scratch = tmp_path_factory.mktemp("here")
    return {name: measure(_case(name, quants), scratch) for name, quants in _FEW.items()}


@pytest.mark.parametrize("name", _FEW)
@pytest.mark.parametrize(("jobs", "range_bytes"), [(5, 60_000), (1, 1 << 30)])
def test_workers_and_pieces(here: dict[str, Any], tmp_path: Path, name: str, jobs: int, range_bytes: int) -> None:
    assert measure(_case(name, _FEW[name]), tmp_path, jobs=jobs, range_bytes=range_bytes) == here[name]


@pytest.mark.parametrize("settings", _SETTINGS)
def test_another_process(here: dict[str, Any], settings: str) -> None:
    quants = ",".join(_FEW.values())
    assert _in_process(_SETTINGS[settings], *_FEW, "--quants", quants) == here


@pytest.mark.slow
def test_a_plain_cpu_writes_every_golden_byte(tmp_path: Path) -> None:
    found = _in_process(_PLAIN_CPU, *_WHOLE)
    assert found == {name: measure(_case(name), tmp_path) for name in _WHOLE}


@pytest.mark.slow
def test_a_plain_cpu_writes_the_same_program(tmp_path: Path) -> None:
    name = "executorch:fused-experts"
    assert _in_process(_PLAIN_CPU | {"PYTHONHASHSEED": "3"}, name)[name] == measure(_case(name), tmp_path)


@pytest.mark.parametrize(("target", "quant"), [("gguf", "Q4_0"), ("onnx", "q4f16"), ("mlx", "4bit")])
def test_the_whole_folder_wherever_it_lies(tiny_moe: Path, tmp_path: Path, target: str, quant: str) -> None:
    """The manifest too: it holds no time, no path and nothing of how the work was divided."""
    elsewhere = tmp_path / "elsewhere" / tiny_moe.name
    shutil.copytree(tiny_moe, elsewhere)
    runs = [(tiny_moe, "one", 1, 1 << 22), (elsewhere, "a longer name", 5, 10_000)]
    for source, out, jobs, n_bytes in runs:
        convert(
            str(source), target=target, quant=quant, out=tmp_path / out, jobs=jobs, range_bytes=n_bytes,
            validate_after=False,
        )  # fmt: skip
    one, other = ({p.relative_to(tmp_path / out): p.read_bytes() for p in (tmp_path / out).rglob("*") if p.is_file()}
                  for _, out, _, _ in runs)  # fmt: skip
    assert one == other and str(tmp_path).encode() not in one[Path(MANIFEST_FILE)]


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize(("target", "quant"), [("gguf", "F16"), ("onnx", "fp16"), ("mlx", "bf16")])
def test_files_have_the_mode_that_umask_says(
    tiny_dense: Path, tmp_path: Path, target: str, quant: str, umask: int
) -> None:
    before = os.umask(umask)
    try:
        convert(str(tiny_dense), target=target, quant=quant, out=tmp_path / "out", validate_after=False)
    finally:
        os.umask(before)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert modes == dict.fromkeys(modes, 0o666 & ~umask)


@pytest.fixture
def rope(tmp_path: Path) -> Rope:
    attention = open_graph(make_checkpoint(tmp_path / "m", dense_25_config()), weights=False).config.first(Attention)
    assert attention is not None and attention.rope is not None
    return attention.rope


def test_rotary_tables_are_the_nearest_numbers(rope: Rope) -> None:
    """Of the angles that the model computes in float32, the cosine and sine to the last bit, far out too."""
    angles = rotary_angles(rope, 0, 128_000)[::127]
    for function, exact in ((cosine, math.cos), (sine, math.sin)):
        expected = np.array([exact(float(angle)) for angle in angles.ravel()]).astype(np.float32)
        assert (function(angles).ravel() == expected).all()


def test_inverse_frequencies_are_transformers_own(rope: Rope) -> None:
    torch = pytest.importorskip("torch")
    size = 2 * len(rope.inverse_frequencies)
    exponents = torch.arange(0, size, 2, dtype=torch.int64).float() / size
    expected = (1.0 / (rope.theta**exponents)).numpy()
    assert (inverse_frequencies(rope) == expected).all()


@pytest.mark.parametrize("name", ["affine4_g64_bf16_refined", "nvfp4_bf16_refined"])
def test_a_group_alone_is_encoded_as_among_others(name: str) -> None:
    """numpy sums a single column in another order than many."""
    encoding = get_encoding(name)
    groups = np.random.default_rng(0).standard_normal((400, encoding.block), np.float32)
    together = encoding.encode(groups)
    for i in range(len(groups)):
        alone = encoding.encode(groups[i : i + 1])
        assert all((a == b[i : i + 1]).all() for a, b in zip(alone, together, strict=True)), i
