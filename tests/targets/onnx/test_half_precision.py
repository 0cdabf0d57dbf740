"""What half precision loses is counted, said, and kept in the manifest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import convert
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor


def _with_gain(graph: WeightGraph, values: list[float]) -> WeightGraph:
    """The graph with the first entries of its final norm's gain replaced."""
    gain = graph.top[Role.FINAL_NORM]
    rows = gain.view.read()
    rows[: len(values)] = values
    return replace(graph, top={**graph.top, Role.FINAL_NORM: replace(gain, view=ArrayTensor(gain.view.name, rows))})


def test_losses_are_counted(dense_graph: WeightGraph, tmp_path: Path) -> None:
    least_kept = np.nextafter(np.float32(2**-25), np.float32(1))
    plain, changed = dense_graph, _with_gain(dense_graph, [0.0, -0.0, 2**-25, -(2**-26), float(least_kept), 2**-14])
    notes = []
    for name, graph in (("plain", plain), ("changed", changed)):
        convert(graph, target="onnx", quant="fp16", out=tmp_path / name, validate_after=False)
        (entry,) = json.loads((tmp_path / name / "lfm-convert.json").read_text())["artifacts"]
        notes.append([int(word.replace(",", "")) for word in entry["notes"][0].split() if word[0].isdigit()])
    (n_before, zeroed_before, small_before), (n, zeroed, small) = notes
    assert n == n_before == plain.n_parameters
    assert (zeroed - zeroed_before, small - small_before) == (2, 1)


def test_overflow_is_refused(dense_graph: WeightGraph, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"'model\.embedding_norm\.weight' row 0 does not fit F16 .*beyond ±65504"):
        convert(_with_gain(dense_graph, [65520.0]), target="onnx", quant="fp16", out=tmp_path, validate_after=False)


def test_scales_are_counted(dense_graph: WeightGraph, tmp_path: Path) -> None:
    """A block of zeros, and one whose range of 9e-4 in 15 steps is below the least normal float16."""
    table = dense_graph.top[Role.EMBED]
    rows = table.view.read()
    rows[0, :32] = 0
    rows[1, :32] = np.linspace(-4e-4, 4e-4, 32)
    changed = replace(table, view=ArrayTensor(table.view.name, rows))
    notes = []
    for name, graph in (("plain", dense_graph), ("changed", replace(dense_graph, top={**dense_graph.top, Role.EMBED: changed}))):  # fmt: skip
        convert(graph, target="onnx", quant="q4f16", out=tmp_path / name, validate_after=False)
        (entry,) = json.loads((tmp_path / name / "lfm-convert.json").read_text())["artifacts"]
        (note,) = (note for note in entry["notes"] if "scales stored in float16" in note)
        notes.append([int(word.replace(",", "")) for word in note.split() if word[0].isdigit()])
    (n_before, zero_before, small_before), (n, zero, small) = notes
    assert n == n_before
    assert (zero - zero_before, small - small_before) == (1, 1)
