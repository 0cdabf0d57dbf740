"""Divergence at equal bytes of what each target writes: by itself, by its best options, and tuned.

    python benchmarks/quality.py [--model bundled:dense sweep:1 FOLDER …] [--text FILE …] [--cache FOLDER] [TARGET:QUANT …]

"plain" has no option: the bytes of the stock tools. "searched" has the importance of columns and the longer search where the
target takes them, "codes" and "bits" one half of `--tune`, "tuned" both. KLD: mean over positions of the graph with an
artifact's decoded weights against the graph itself in float32, with its error over texts and its 99th percentile, over
two texts that nothing was calibrated on: the validator's prompts, and files of Python's standard library. Calibration is by the
text that comes with the tool, or by `--text`. `sweep:1` is a model that no default was chosen on, see
tests/support/sweep_models.py; it is made in the cache where it is missing.
"""

from __future__ import annotations

import argparse
import sys
import sysconfig
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lfm_convert.convert.pipeline import convert, open_model
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.options import options_of
from lfm_convert.targets.target import get_target
from lfm_convert.validate.metrics import position_kld
from scoring import prompts_of

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

CASES = ("gguf:Q3_K_M", "gguf:Q4_0", "gguf:Q4_K_M", "mlx:3bit", "mlx:4bit", "onnx:q4", "compressed-tensors:W4A16")
_MODELS = ("bundled:dense", "bundled:moe", "bundled:lfm3", "sweep:0", "sweep:1", "sweep:5")
_MAX_TOKENS, _N_FILES, _SEED = 160, 24, 7


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", nargs="+", default=_MODELS)
    parser.add_argument("--text", nargs="+", type=Path, default=[])
    parser.add_argument("--cache", type=Path, default=Path("sweep"))
    parser.add_argument("cases", nargs="*", default=CASES)
    arguments = parser.parse_args()
    print(
        f"{'model':18} {'case':27} {'way':9} {'bytes':>10} {'prompts':>9} {'±':>8} {'p99':>7} {'code':>9} {'seconds':>8}"
    )
    for model in arguments.model:
        with TemporaryDirectory() as folder:
            bench = _Bench.of(_open(model, arguments.cache), Path(folder), arguments.text)
            for case in arguments.cases:
                bench.show(*case.split(":"))


def _open(model: str, cache: Path) -> WeightGraph:
    if not model.startswith("sweep:"):
        return open_model(model)
    from support import sweep_models

    return open_model(str(sweep_models.model(cache, int(model.removeprefix("sweep:")))))


@dataclass(frozen=True)
class _Bench:
    """A model, its statistics, and what it says itself of each scored text by name."""

    graph: WeightGraph
    folder: Path
    scored: Mapping[str, Sequence[Sequence[int]]]
    wanted: Mapping[str, Sequence[np.ndarray]]

    @classmethod
    def of(cls, graph: WeightGraph, folder: Path, texts: Sequence[Path]) -> _Bench:
        write_statistics(graph, texts, folder / "statistics")
        scored = {"prompts": prompts_of(graph, _MAX_TOKENS), "code": _code(graph)}
        forward = Forward(graph)
        return cls(graph, folder, scored, {name: forward.prefill(chunks)[0] for name, chunks in scored.items()})

    def show(self, target: str, quant: str) -> None:
        known, statistics = options_of(get_target(target)), self.folder / "statistics"
        searched: dict[str, Any] = {"imatrix": str(statistics / "imatrix.gguf")} if "imatrix" in known else {}
        searched |= {"refine": True} if "refine" in known else {}
        tuned = {"statistics": str(statistics)}
        ways: dict[str, tuple[Mapping[str, Any], tuple[str, ...]]] = {
            "plain": ({}, ()),
            "searched": (searched, ()),
            "codes": (tuned, ("codes",)),
            "bits": (tuned, ("bits",)),
            "tuned": (tuned, ("bits", "codes")),
        }
        for way, (options, tune) in ways.items():
            if way == "searched" and not searched:
                continue
            began = time.perf_counter()
            n_bytes, found = self._measure(target, quant, options, tune)
            seconds = time.perf_counter() - began
            prompts, code = (np.concatenate(found[name]) for name in ("prompts", "code"))
            means = np.array([each.mean() for each in found["prompts"]])
            print(
                f"{self.graph.name:18} {target + ' ' + quant:27} {way:9} {n_bytes:10,} {prompts.mean():9.5f} "
                f"{means.std(ddof=1) / np.sqrt(len(means)):8.5f} {np.quantile(prompts, 0.99):7.4f} {code.mean():9.5f} "
                f"{seconds:8.1f}",
                flush=True,
            )

    def _measure(
        self, target: str, quant: str, options: Mapping[str, Any], tune: tuple[str, ...]
    ) -> tuple[int, Mapping[str, list[np.ndarray]]]:
        with TemporaryDirectory(dir=self.folder) as out:
            done = convert(
                self.graph, target=target, quant=quant, out=Path(out), options=options, tune=tune, validate_after=False
            )
            (artifact,) = done.artifacts
            forward = Forward(self.graph.with_weights(get_target(target).read(artifact)))
            found = {
                name: [position_kld(*pair) for pair in zip(self.wanted[name], forward.prefill(chunks)[0], strict=True)]
                for name, chunks in self.scored.items()
            }
            return done.plans[0].total_bytes, found


def _code(graph: WeightGraph) -> list[Sequence[int]]:
    """The middle of files of the standard library, which a model of the sweep may have been trained on."""
    files = [path for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) if path.stat().st_size > 20_000]
    if graph.tokenizer is None:
        raise SystemExit(f"{graph.folder}: has no tokenizer.json")
    texts = (path.read_text(encoding="utf-8")[8000:12_000] for path in Random(_SEED).sample(files, _N_FILES))
    return [graph.tokenizer.encode(text, special=False)[:_MAX_TOKENS] for text in texts]


if __name__ == "__main__":
    main()
