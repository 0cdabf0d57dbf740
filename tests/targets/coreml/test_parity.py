"""Packages of the bundled models against the graph's forward with the weights that they store."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from lfm_convert.graph.errors import UsageError
from support.planted import BUGS

from .packages import Made, assert_same, check, in_pieces

pytestmark = pytest.mark.peers

KINDS = ("dense", "moe", "lfm3")
# A window of LFM3 is 64, a chunk 16, the context 256.
PIECES = {
    "token by token": [1] * 72,
    "chunks": [16] * 8,
    "padded chunks": [5, 16, 1, 3, 16, 15, 1, 1, 2, 16, 16, 7],
    "to the end of the context": [16] * 15 + [9] + [1] * 7,
    "a padded chunk at the very end": [16] * 15 + [13, 3],
    "one call": [130],
}


def tokens(count: int) -> list[int]:
    return [1, *np.random.default_rng(3).integers(14, 1000, count - 1).tolist()]


@pytest.mark.parametrize("pieces", PIECES)
@pytest.mark.parametrize("kind", KINDS)
def test_fp16(kind: str, pieces: str, made: Callable[..., Made]) -> None:
    check(made(kind, "fp16"), PIECES[pieces])


@pytest.mark.parametrize("quant", ["int8", "int4", "int4-pal"])
@pytest.mark.parametrize("kind", KINDS)
def test_quants(kind: str, quant: str, made: Callable[..., Made]) -> None:
    check(made(kind, quant), [16, 7, *[1] * 17])


@pytest.mark.parametrize("state", ["kv", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_second_conversation(kind: str, state: str, made: Callable[..., Made]) -> None:
    """Nothing is cleared: states and windows still hold what the first conversation left there."""
    package = made(kind, "fp16", coreml_state=state)
    runner = package.run()
    in_pieces(runner, tokens(100), [16] * 6 + [4])
    check(package, [1, 1, 16, 9, 16, 16, 16, 15], runner)


@pytest.mark.parametrize("kind", ["dense", "lfm3"])
def test_padding_is_never_seen(kind: str, made: Callable[..., Made]) -> None:
    """Whatever a chunk is padded with: the calls after it give the same bits."""
    package = made(kind, "fp16")
    plain, other = package.run(), package.run()
    padding = {id(plain): [0], id(other): [999]}

    def padded(runner: object) -> Callable[..., object]:
        (stage,) = runner._stages  # type: ignore[attr-defined]
        call = stage.engine.call

        def changed(function: str, inputs: dict[str, np.ndarray], states: object) -> object:
            if "n_tokens" in inputs:
                inputs["input_ids"][0, int(inputs["n_tokens"][0]) :] = padding[id(runner)]
            return call(function, inputs, states)

        return changed

    for runner in (plain, other):
        runner._stages[0].engine.call = padded(runner)  # type: ignore[attr-defined]
    prompt = tokens(60)
    np.testing.assert_array_equal(
        *(in_pieces(runner, prompt, [3, 1, 9, 1, 1, 16, 2, 11, *[1] * 16]) for runner in (plain, other))
    )


def test_beyond_the_context(made: Callable[..., Made]) -> None:
    runner = made("dense", "fp16").run()
    runner.extend(tokens(250))
    with pytest.raises(UsageError, match="257 tokens do not fit the package's context of 256"):
        runner.extend([5] * 7)


@pytest.mark.parametrize(
    ("kind", "bug"),
    [
        ("moe", "softmax router"),
        ("dense", "rope interleaved"),
        ("dense", "conv taps reversed when run"),
        ("lfm3", "QK norm missing"),
        ("lfm3", "final norm skipped"),
    ],
)
def test_another_computation_is_seen(kind: str, bug: str, made: Callable[..., Made]) -> None:
    """The comparison above fails where either side has one of these mistakes."""
    package, prompt = made(kind, "fp16"), tokens(40)
    wrong = BUGS[bug].forward(package.decoded()).prefill([prompt])[0][0]
    with pytest.raises(AssertionError):
        assert_same(wrong, in_pieces(package.run(), prompt, [16, 16, 8]))
