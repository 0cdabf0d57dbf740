"""The stock C++ LLM runner, which Android and iOS wrap, runs our files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from lfm_convert.graph.blocks import Attention, Mixture
from lfm_convert.graph.reference.forward import Forward

from .conftest import Exported
from .int8_forward import Int8Activations

pytestmark = pytest.mark.peers

# The third is the first again.
PROMPTS = ("The statement", "My name is", "The statement")


def _chat(*turns: str) -> str:
    """Turns of a user and an assistant, the user's first and last."""
    rendered = (f"<|im_start|>{('user', 'assistant')[i % 2]}\n{text}<|im_end|>\n" for i, text in enumerate(turns))
    return "".join(rendered) + "<|im_start|>assistant\n"


# Longer than a window, the first than two; the answers end, and no token of them is a near tie.
_NORA = "My name is Nora.", "Nice to meet you, Nora!"
_FRANCE = "What is the capital of France?", "The capital of France is Paris."
_ITALY = "What is the capital of Italy?", "The capital of Italy is Rome."
_JAPAN = "What is the capital of Japan?", "The capital of Japan is Tokyo."
_CAPITALS = _chat(*_NORA, *_FRANCE, *_ITALY, *_JAPAN, "What is the capital of Greece?")
CHATS = _CAPITALS, _chat(*_NORA, *_NORA, *_FRANCE, "Who are you?"), _CAPITALS
N_TOKENS = 40


@pytest.mark.parametrize(
    ("kind", "quant", "options", "prompts"),
    [
        ("dense", "fp32", {}, PROMPTS),
        pytest.param("moe", "fp32", {}, PROMPTS, marks=pytest.mark.slow),
        ("moe", "8da4w", {}, PROMPTS),
        pytest.param("moe", "8da4w", {"et_moe": "moe_ffn", "external_weights": True}, PROMPTS, marks=pytest.mark.slow),
        pytest.param("lfm3", "8da4w", {}, CHATS, marks=pytest.mark.slow),
    ],
)
def test_greedy_text(
    kind: str, quant: str, options: dict[str, Any], prompts: tuple[str, ...], exported: Callable[..., Exported]
) -> None:
    found = exported(kind, quant, **options)
    texts = _printed(found, prompts)
    assert texts[0] == texts[2] != texts[1]
    for prompt, text in zip(prompts[:2], texts, strict=False):
        assert text == _greedy(found, prompt)


def test_chats_are_longer_than_a_window_and_answers_end(exported: Callable[..., Exported]) -> None:
    """Otherwise LFM3 above would say nothing of a ring that turns, or of the ids at which the runner stops."""
    found = exported("lfm3", "8da4w")
    (window,) = {block.window for block in found.graph.config.of_kind(Attention).values()} - {None}
    lengths = [len(found.graph.tokenizer.encode(chat)) for chat in CHATS[:2]]
    assert lengths[0] > 2 * window and lengths[1] > window
    for answer in (_greedy_ids(found, chat) for chat in CHATS[:2]):
        assert len(answer) < N_TOKENS and answer[-1] in found.graph.stop_ids


def _printed(found: Exported, prompts: Sequence[str]) -> list[str]:
    """What the runner says to each prompt, one conversation after the other."""
    from . import llm_runner

    tokenizer = found.artifact.folder / "tokenizer.json"
    data = "".join(str(path) for path in found.artifact.files if path.suffix == ".ptd")
    command = [sys.executable, "-P", llm_runner.__file__, found.artifact.path, tokenizer, data, str(N_TOKENS)]
    printed = subprocess.run([*command, *prompts], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    # the runner's printer skips pieces that are part of a character, so that only ASCII can be compared
    return [each.partition(b"\nPyTorchObserver")[0].decode("ascii", "ignore") for each in printed]


def _greedy(found: Exported, prompt: str) -> str:
    """As the runner prints it, which ends the line after a token that it stops at."""
    tokens = _greedy_ids(found, prompt)
    text = found.graph.tokenizer.decode(tokens) + "\n" * (tokens[-1] in found.graph.stop_ids)
    return text.encode("ascii", "ignore").decode()


def _greedy_ids(found: Exported, prompt: str) -> list[int]:
    """By the forward as the file computes it; of a quantized mixture by the file, since a code that turns turns experts."""
    ids, stop = found.graph.tokenizer.encode(prompt), found.graph.stop_ids
    if found.artifact.quant == "fp32":
        return Forward(found.graph).generate(ids, max_new_tokens=N_TOKENS, stop=stop)
    if not found.graph.config.of_kind(Mixture):
        return Int8Activations(found.decoded()).generate(ids, max_new_tokens=N_TOKENS, stop=stop)
    runner = found.target.run(found.artifact, threads=1)
    tokens = [int(runner.logits(ids)[-1].argmax())]
    while len(tokens) < N_TOKENS and tokens[-1] not in stop:
        tokens.append(int(runner.extend(tokens[-1:])[-1].argmax()))
    return tokens
