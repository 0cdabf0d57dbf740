"""The stock C++ LLM runner, which Android and iOS wrap, runs our files."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from lfm_convert.convert.model.forward import Forward

from .conftest import Exported

pytestmark = pytest.mark.peers

PROMPTS = ("The statement", "My name is", "The statement")
N_TOKENS = 40


@pytest.mark.parametrize(
    ("kind", "quant", "options"),
    [
        ("dense", "fp32", {}),
        pytest.param("moe", "fp32", {}, marks=pytest.mark.slow),
        ("moe", "8da4w", {}),
        ("moe", "8da4w", {"et_moe": "moe_ffn", "external_weights": True}),
    ],
)
def test_greedy_text(kind: str, quant: str, options: dict[str, Any], exported: Callable[..., Exported]) -> None:
    found = exported(kind, quant, **options)
    from . import llm_runner

    tokenizer = found.artifact.folder / "tokenizer.json"
    data = "".join(str(path) for path in found.artifact.files if path.suffix == ".ptd")
    command = [sys.executable, "-P", llm_runner.__file__, found.artifact.path, tokenizer, data, str(N_TOKENS)]
    printed = subprocess.run([*command, *PROMPTS], capture_output=True, check=True).stdout.split(b"\0")[:-1]
    # the runner's printer skips pieces that are part of a character, so that only ASCII can be compared
    texts = [each.partition(b"\nPyTorchObserver")[0].decode("ascii", "ignore") for each in printed]
    assert texts[0] == texts[2] != texts[1]
    for prompt, text in zip(PROMPTS[:2], texts, strict=False):
        assert text == _greedy(found, prompt)


def _greedy(found: Exported, prompt: str) -> str:
    """By the graph's forward where the file holds its weights, else by the file token by token."""
    tokenizer, stop = found.graph.tokenizer, found.graph.config.eos_token_ids
    ids = tokenizer.encode(prompt)
    if found.artifact.quant == "fp32":
        tokens = Forward(found.graph).generate(ids, max_new_tokens=N_TOKENS, stop=stop)
    else:
        runner = found.target.run(found.artifact, threads=1)
        tokens = [int(runner.logits(ids)[-1].argmax())]
        while len(tokens) < N_TOKENS and tokens[-1] not in stop:
            tokens.append(int(runner.extend(tokens[-1:])[-1].argmax()))
    text = tokenizer.decode([token for token in tokens if token not in stop])
    return str(text).encode("ascii", "ignore").decode()
