"""The measured floor of models: how far each is from itself when only the arithmetic changes.

    python benchmarks/floor.py [--seeds 20]

Prints a row a model and arithmetic: the bundled dense model and mixture on the shared prompts, and random small
mixtures on random ids, of which the smallest and the largest divergence are shown.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lfm_convert.convert import bundled
from lfm_convert.convert.model.graph import WeightGraph
from lfm_convert.convert.model.lfm2 import open_graph
from lfm_convert.validate.floor import Floor, measure_floor
from lfm_convert.validate.prompts import EncodedPrompt, encode_prompts
from lfm_convert.validate.selection import probe_prompts
from lfm_convert.validate.suites import choose_prompts
from support.checkpoints import make_checkpoint, moe_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20, help="random mixtures")
    options = parser.parse_args()
    print("| model | arithmetic | mean KLD | same top-1 | experts agree |\n|---|---|---|---|---|")
    for name in ("dense", "moe"):
        graph = open_graph(bundled.path(name))
        show(graph.name, [measure_floor(graph, shared_prompts(graph))])
    with tempfile.TemporaryDirectory() as folder:
        show(f"{options.seeds} random mixtures", [random_floor(Path(folder), seed) for seed in range(options.seeds)])


def shared_prompts(graph: WeightGraph) -> list[EncodedPrompt]:
    """Those of the standard suite that a validation measures the floor on."""
    prompts = choose_prompts(graph.tokenizer)
    encoded = encode_prompts(prompts, graph.tokenizer, graph.assets, vocab_size=graph.config.vocab_size)
    return [encoded[i] for i in probe_prompts(encoded)]


def random_floor(folder: Path, seed: int) -> Floor:
    graph = open_graph(make_checkpoint(folder / str(seed), moe_config(), seed=seed))
    rng = np.random.default_rng(seed)
    prompts = [EncodedPrompt(f"p{n}", (1, *rng.integers(14, 512, n - 1).tolist())) for n in (40, 80, 120, 128, 128)]
    return measure_floor(graph, prompts)


def show(model: str, floors: list[Floor]) -> None:
    for arithmetic in floors[0].distances:
        found = [floor.distances[arithmetic] for floor in floors]
        kld = [distance.metrics.kld_mean for distance in found]
        same = [distance.metrics.same_top1 for distance in found]
        agree = [distance.experts_agree for distance in found if distance.experts_agree is not None]
        cells = (_range(kld, "{:.2g}"), _range(same, "{:.1%}"), _range(agree, "{:.1%}") if agree else "–")
        print(f"| {model} | {arithmetic.value} | {' | '.join(cells)} |")


def _range(values: list[float], pattern: str) -> str:
    least, most = pattern.format(min(values)), pattern.format(max(values))
    return least if least == most else f"{least} … {most}"


if __name__ == "__main__":
    main()
