"""Our numbers of one GGUF under the text suite against llama-perplexity's formulas on llama.cpp's own logits."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.target import get_target
from lfm_convert.validate.parity import validate
from lfm_convert.validate.suites import choose_prompts
from support.artifacts import write_artifact

TEXT = "The harbour wakes before the town does. A keeper counts {n} crates, and the ferry to the island is {n} minutes late. "


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    """As llama.cpp's `log_softmax`: the largest logit off, then the logarithm of a double sum."""
    largest = float(logits.max())
    total = math.fsum(math.exp(float(x) - largest) for x in logits)
    return logits.astype(np.float64) - largest - math.log(total)


@pytest.mark.peers
@pytest.mark.slow
def test_divergence_and_top1_are_llama_cpps(tmp_path: Path) -> None:
    pytest.importorskip("xllamacpp")
    graph = open_graph(bundled.path("dense"))
    text = tmp_path / "text.txt"
    text.write_text("".join(TEXT.format(n=n) for n in range(120)))
    prompts = choose_prompts(graph.tokenizer, text=text, n_chunks=4)
    base, artifact = (write_artifact(graph, "gguf", quant, tmp_path / quant) for quant in ("F32", "Q4_0"))
    found = validate([artifact], graph, prompts=prompts, threads=1).results[0].metrics
    target = get_target("gguf")
    first, second = target.run(base, threads=1), target.run(artifact, threads=1)
    kld, same = [], []
    for prompt in prompts:
        p_logits, q_logits = first.logits(prompt.ids), second.logits(prompt.ids)
        for position in range(256, 511):
            log_p, log_q = _log_softmax(p_logits[position]), _log_softmax(q_logits[position])
            kld.append(math.fsum(math.exp(a) * (a - b) for a, b in zip(log_p.tolist(), log_q.tolist(), strict=True)))
            same.append(int(p_logits[position].argmax()) == int(q_logits[position].argmax()))
    assert found is not None and found.n_positions == len(kld) == 4 * 255
    print(f"ours {found.kld_mean:.9g}, llama.cpp {np.mean(kld):.9g}")
    assert found.kld_mean == pytest.approx(np.mean(kld), rel=1e-6)
    assert found.same_top1 == np.mean(same)
