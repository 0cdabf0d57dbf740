"""Importance matrices: both file formats, what is refused, and calibration against a forward pass by hand."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.graph.roles import Role
from lfm_convert.quantize.calibration import Use, calibrate
from lfm_convert.quantize.imatrix import importance_bytes, read_importance
from lfm_convert.targets.gguf.target import TARGET
from support.prompts import PROMPT
from support.refusals import refused

DOWN = "blk.1.ffn_down_exps.weight"
UP = "blk.0.ffn_up.weight"


def write(path: Path, **uses: Use) -> Path:
    path.write_bytes(importance_bytes(uses, datasets=("a.txt", "b.txt"), n_chunks=2, chunk_size=512))
    return path


def legacy(*entries: tuple[bytes, int, list[float]], tail: bytes = b"") -> bytes:
    data = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        data += struct.pack("<i", len(name)) + name + struct.pack("<ii", calls, len(values))
        data += np.array(values, "<f4").tobytes()
    return data + tail


def test_means_of_what_was_written(tmp_path: Path) -> None:
    sums = np.array([[2, 4], [0, 0], [9, 3]], np.float32)
    found = read_importance(write(tmp_path / "i.gguf", w=Use(sums, np.array([2, 0, 3], np.float32))))
    assert found.datasets == ("a.txt", "b.txt") and found.n_chunks == 2
    importance = found.of("w", n_slices=3, n_cols=2)
    assert importance is not None and importance.tolist() == [[1, 2], [1, 1], [3, 1]]
    assert found.never_hit == {"w": (1,)}
    assert found.of("other", n_slices=1, n_cols=2) is None
    with refused("i.gguf", "'w'", "6 values", "2 x 2"):
        found.of("w", n_slices=2, n_cols=2)


def test_a_legacy_file(tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy((b"w", 4, [8, 2]), (b"v", 0, [3]), tail=struct.pack("<ii", 7, 3) + b"txt"))
    found = read_importance(path)
    assert {name: values.tolist() for name, values in found.means.items()} == {"w": [2, 0.5], "v": [3]}
    assert (found.n_chunks, found.datasets, found.never_hit) == (7, ("txt",), {})
    path.write_bytes(legacy((b"w", 1, [1])))
    assert read_importance(path).n_chunks == 0


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "cannot be read"),
        (legacy((b"w", 1, [1]))[:-1], "bytes are declared"),
        (struct.pack("<ii", 1, -5), "bytes are declared"),
        (struct.pack("<ii", 1, 1 << 30), "bytes are declared"),
        (legacy((b"\xff", 1, [1])), "cannot be read"),
        (legacy((b"w", 1, [float("nan")])), "'w' is not finite"),
        (legacy((b"w", 1, [-1.0])), "'w' is not finite or negative"),
    ],
)
def test_damaged_files_are_refused(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "bad.dat"
    path.write_bytes(data)
    with refused(path, reason):
        read_importance(path)


def test_other_gguf_files_are_refused(dense_graph: WeightGraph, write_quant: Any) -> None:
    with refused("not part of an importance matrix"):
        read_importance(write_quant(dense_graph, "F32").path)


def test_calibration_sums_the_squares_of_what_enters(moe_graph: WeightGraph) -> None:
    found = calibrate(moe_graph, [PROMPT, PROMPT[:9]])
    n_tokens = len(PROMPT) + 9
    matrices = {(w.role, w.layer) for w in moe_graph.weights() if w.layer is not None and len(w.shape) > 1}
    assert set(found) == {address for address in matrices if address[0] is not Role.CONV_KERNEL}
    forward = Forward(moe_graph)
    stream = np.concatenate([next(iter(forward.trace([ids]))) for ids in (PROMPT, PROMPT[:9])])
    gain = moe_graph.layers[0][Role.OPERATOR_NORM].read()
    normed = stream / np.sqrt((stream**2).mean(axis=1, keepdims=True) + moe_graph.config.norm_eps) * gain
    first = found[Role.CONV_IN, 0]
    assert first.counts.tolist() == [n_tokens]
    assert np.allclose(first.sums[0], (normed**2).sum(axis=0), rtol=1e-4)
    for role in (Role.EXPERT_GATE, Role.EXPERT_DOWN):
        assert found[role, 1].counts.sum() == n_tokens * 4
        assert found[role, 1].sums.shape == (8, moe_graph.layers[1][role].shape[-1])


def test_chunks_are_independent_of_batches(moe_graph: WeightGraph) -> None:
    apart = [calibrate(moe_graph, [PROMPT[: 10 + i]]) for i in range(10)]
    together = calibrate(moe_graph, [PROMPT[: 10 + i] for i in range(10)])
    for address, use in together.items():
        assert np.array_equal(use.counts, sum(each[address].counts for each in apart))
        assert np.allclose(use.sums, sum(each[address].sums for each in apart), rtol=1e-4, atol=1e-6)


def test_calibrate_and_convert(
    tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], moe_graph: WeightGraph
) -> None:
    text, chat, out = tmp_path / "a.txt", tmp_path / "b.jsonl", tmp_path / "imatrix.gguf"
    text.write_text("The harbour wakes before the town does. " * 20)
    chat.write_text(json.dumps({"messages": [{"role": "user", "content": "Hello"}]}) + "\n")
    command = ["calibrate", str(tiny_moe), "--text", str(text), "--text", str(chat), "-o", str(out)]
    assert main([*command, "--chunk-size", "64", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    found = read_importance(out)
    assert said["entries"] == len(found.means) and said["chunks"] == found.n_chunks > 1
    assert {name: list(experts) for name, experts in found.never_hit.items()} == said["never_hit"]
    plan = TARGET.with_options({"imatrix": str(out)}).plan(moe_graph, "Q4_0")
    weighed = {tensor.name for tensor in plan.tensors if tensor.importance is not None}
    assert {UP, DOWN} <= weighed
    assert next(t for t in plan.tensors if t.name == DOWN).importance.shape[0] == 8  # type: ignore[union-attr]


def test_missing_entries_and_experts_are_listed(moe_graph: WeightGraph, tmp_path: Path) -> None:
    shape = moe_graph.layers[1][Role.EXPERT_DOWN].shape
    use = Use(np.ones((shape[0], shape[-1]), np.float32), np.array([0, *[1] * 7], np.float32))
    path = write(tmp_path / "i.gguf", **{DOWN: use})
    notes = TARGET.with_options({"imatrix": str(path)}).plan(moe_graph, "Q4_0").notes
    assert any("has no importance of" in note and UP in note for note in notes)
    assert any(f"no token reached experts 0 of {DOWN}" in note for note in notes)
    notes = TARGET.with_options({"imatrix": str(path)}).plan(moe_graph, "F16").notes
    assert any("do not apply to float quants" in note for note in notes)
