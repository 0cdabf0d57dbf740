"""A folder of onnxruntime-genai's builder, which `make .clients/genai-0.18.0/.done` installs, without a manifest: the sound
one passes what is exact, one with a planted bug fails with its cause.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import onnx
import pytest
from lfm_convert.convert import bundled, pipeline
from lfm_convert.validate.gates import Failure, Part, part_verdicts
from lfm_convert.validate.results import ArtifactResult, Verdict
from support.family_configs import small
from support.family_models import make_model

pytest.importorskip("onnxruntime")
BUILDER = Path(__file__).resolve().parents[2] / ".clients" / "genai-0.18.0" / "bin" / "python"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not BUILDER.exists(), reason="needs make .clients/genai-0.18.0/.done"),
]


def _build(model: Path, folder: Path) -> Path:
    command = [BUILDER, "-m", "onnxruntime_genai.models.builder", "-i", model, "-o", folder / "built"]
    subprocess.run([*command, "-p", "int4", "-e", "cpu", "-c", folder / "cache"], check=True, capture_output=True)
    return folder / "built"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _build(bundled.path("dense"), tmp_path_factory.mktemp("genai"))


def _validated(folder: Path, reference: Path | None = None) -> ArtifactResult:
    (found,) = pipeline.validate([folder], reference=str(reference or bundled.path("dense")), suite="smoke").results
    return found


@pytest.mark.parametrize("name", ["Qwen3-0.6B", "Llama-3.2-1B", "Granite-3.3-2B"])
def test_other_families(name: str, tmp_path: Path) -> None:
    """Some without norms of heads, with a context of 512 positions, for which the builder's tables have rows."""
    model = make_model(tmp_path / "model", small(name))
    found = _validated(_build(model, tmp_path), model)
    assert found.verdict is Verdict.PASS and not found.not_judged, found.message


def test_the_sound_one_passes_what_is_exact(built: Path) -> None:
    found = _validated(built)
    verdicts = part_verdicts(found.gates)
    for part in (Part.TOKENIZER, Part.WEIGHTS, Part.EXECUTION, Part.CACHE):
        assert verdicts.get(part.value) == "pass", (part, found.message)
    assert found.artifact.target == "onnx" and "no manifest: provenance unknown" in found.message


def test_gate_and_up_exchanged_are_named(built: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(built, tmp_path / "wrong"))
    model = onnx.load(str(folder / "model.onnx"), load_external_data=False)
    gate, up = (
        next(n for n in model.graph.node if "layers.1/" in n.name and f"{name}_proj/MatMul" in n.name)
        for name in ("gate", "up")
    )
    for i in range(1, len(gate.input)):
        gate.input[i], up.input[i] = up.input[i], gate.input[i]
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    found = _validated(folder)
    assert found.verdict is Verdict.FAIL and found.failure is Failure.BROKEN
    assert "layer 1 ffn_" in found.message
