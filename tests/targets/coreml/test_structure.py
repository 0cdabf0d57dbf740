"""What is said of packages that coremltools makes, by what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import InputError
from lfm_convert.targets.coreml.structure import check_package, examine
from support.coreml_packages import INT, SINGLE, convert, ct, mb, program, save, state, tensor


def notes(tmp_path: Path, body: Any, *inputs: Any) -> str:
    found = examine(save(program(body, *inputs), tmp_path))
    assert found.faults == ()
    return " ".join(found.notes)


def test_a_package_of_coremltools_has_no_faults_and_nothing_to_note(tmp_path: Path) -> None:
    def body(x: Any, kept: Any) -> Any:
        return mb.coreml_update_state(state=kept, value=mb.add(x=mb.read_state(input=kept), y=x), name="y")

    assert notes(tmp_path, body, tensor(1, 64), state(1, 64)) == ""


def test_operations_of_other_units_are_noted(tmp_path: Path) -> None:
    def body(x: Any, i: Any) -> Any:
        weight = np.ones((8, 1, 3), np.float16)
        x = mb.conv(x=x, weight=weight, groups=8, pad_type="same")
        return mb.scatter(data=x, indices=i, updates=x, axis=0, mode="update", name="y")

    said = notes(tmp_path, body, tensor(1, 8, 16), tensor(1, dtype=INT))
    assert "scatter: the Neural Engine does not scatter" in said
    assert "1 depthwise convolutions fall back to the CPU" in said
    assert "float32" not in said


def test_float32_is_noted(tmp_path: Path) -> None:
    said = notes(tmp_path, lambda x: mb.exp(x=mb.square(x=x), name="y"), tensor(1, 8, dtype=SINGLE))
    assert "main: 2 of 2 results are in float32" in said


def test_states_are_counted_and_measured(tmp_path: Path) -> None:
    def body(x: Any, a: Any, b: Any, c: Any) -> Any:
        for each in (a, b, c):
            x = mb.coreml_update_state(state=each, value=mb.add(x=mb.read_state(input=each), y=x))
        return mb.identity(x=x, name="y")

    said = notes(tmp_path, body, tensor(1, 40), state(1, 40), state(1, 40), state(1, 40))
    assert "has 3 states (a, b, c): more than one fail at prediction on the Neural Engine, and the CPU" in said
    assert "state 'a' is 40 wide, no multiple of 32" in said


def test_flexible_shapes_agree_with_their_description(tmp_path: Path) -> None:
    from coremltools.converters.mil.mil import get_new_symbol

    @mb.program(input_specs=[mb.TensorSpec((1, get_new_symbol()), dtype=SINGLE)], opset_version=ct.target.iOS18)
    def body(x: Any) -> Any:
        return mb.exp(x=x, name="y")

    made = convert(body, inputs=[ct.TensorType(name="x", shape=(1, ct.RangeDim(1, 9)))])
    assert examine(save(made, tmp_path)).faults == ()


@pytest.mark.parametrize(("ios", "version"), [(16, 7), (17, 8)])
def test_packages_of_other_versions_are_faulty(tmp_path: Path, ios: int, version: int) -> None:
    made = program(lambda x: mb.exp(x=x, name="y"), tensor(1, 8, dtype=SINGLE), ios=ios)
    with pytest.raises(InputError, match=rf"specification version {version}: expected 9 .* opset CoreML{version - 1}"):
        check_package(save(made, tmp_path))
