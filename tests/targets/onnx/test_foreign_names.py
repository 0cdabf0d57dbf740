"""Names of weights in graphs of other writers."""

from __future__ import annotations

import pytest
from lfm_convert.graph.roles import Role
from lfm_convert.targets.onnx.foreign_names import role_of, table_of

INPUT = "model.layers.2.input_layernorm.weight"
AFTER = "model.layers.2.post_attention_layernorm.weight"
BEFORE_FFN = "model.layers.2.pre_feedforward_layernorm.weight"
AFTER_FFN = "model.layers.2.post_feedforward_layernorm.weight"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((INPUT, AFTER), {INPUT: Role.OPERATOR_NORM, AFTER: Role.FFN_NORM}),
        (
            (INPUT, AFTER, BEFORE_FFN, AFTER_FFN),
            {
                INPUT: Role.OPERATOR_NORM,
                AFTER: Role.POST_OPERATOR_NORM,
                BEFORE_FFN: Role.FFN_NORM,
                AFTER_FFN: Role.POST_FFN_NORM,
            },
        ),
    ],
    ids=["before each block", "on both sides"],
)
def test_norms(names: tuple[str, ...], expected: dict[str, Role]) -> None:
    table = table_of(names)
    assert {name: role_of([name], table) for name in names} == {name: (role, 2) for name, role in expected.items()}
