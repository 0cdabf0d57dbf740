"""Divergence at equal bytes of what each target writes: by itself, by its best options, and with tuned codes.

    python benchmarks/quality.py [--model bundled:dense …] [--tokens N] [TARGET:QUANT …]

"plain" has no option, "searched" the importance of columns and the longer search where the target takes them, "tuned" those
and `--tune codes`. KLD: mean over positions of the graph with an artifact's decoded weights against the graph itself in
float32, with the error of the mean over texts, and its 99th percentile. Both texts are drawn from what the bundled models
are trained on: calibration from the documents they saw, scoring from those held out.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from lfm_convert.convert.bundled.making import corpus
from lfm_convert.convert.bundled.making.tokenizer import render
from lfm_convert.convert.calibration import CHUNK_TOKENS, chunks_of, measure, sources_of
from lfm_convert.convert.pipeline import convert, open_model
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.reference.forward import Forward
from lfm_convert.targets.options import options_of
from lfm_convert.targets.target import get_target
from lfm_convert.validate.metrics import position_kld

CASES = (
    "gguf:Q4_0", "gguf:Q4_K_M", "gguf:Q3_K_M", "gguf:IQ4_XS", "mlx:4bit", "mlx:3bit", "onnx:q4",
    "compressed-tensors:W4A16",
)  # fmt: skip
_SCORED_CHUNKS = 24
_SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="append")
    parser.add_argument("--tokens", type=int, default=24_576, help="of the text that is calibrated on")
    parser.add_argument("cases", nargs="*", default=CASES)
    arguments = parser.parse_args()
    print(
        f"{'model':18} {'case':26} {'way':9} {'bytes':>10} {'KLD':>9} {'±':>8} {'p99':>8} {'change':>8} {'seconds':>8}"
    )
    for model in arguments.model or ("bundled:dense", "bundled:moe", "bundled:lfm3"):
        with TemporaryDirectory() as folder:
            bench = _Bench.of(open_model(model), Path(folder), n_tokens=arguments.tokens)
            for case in arguments.cases:
                bench.show(*case.split(":"))


@dataclass(frozen=True)
class _Bench:
    """A model, the files of its calibration, and what it says itself of the text that is scored."""

    graph: WeightGraph
    folder: Path
    text: Path
    imatrix: Path
    scored: Sequence[Sequence[int]]
    wanted: Sequence[np.ndarray]

    @classmethod
    def of(cls, graph: WeightGraph, folder: Path, *, n_tokens: int) -> _Bench:
        train, held_out = corpus.build(seed=_SEED)
        text, scored = folder / "calibration.txt", folder / "scored.txt"
        written = _mixed(train)
        text.write_text(written)
        share = n_tokens / sum(map(len, _chunks(graph, text)))
        text.write_text(written[: int(len(written) * share)])
        scored.write_text(_mixed(held_out))
        chunks = _chunks(graph, scored)
        chunks = chunks[:: max(1, len(chunks) // _SCORED_CHUNKS)][:_SCORED_CHUNKS]
        imatrix = folder / "imatrix.gguf"
        imatrix.write_bytes(measure(graph, [text]).content)
        return cls(graph, folder, text, imatrix, chunks, Forward(graph).prefill(chunks)[0])

    def show(self, target: str, quant: str) -> None:
        known = options_of(get_target(target))
        searched: dict[str, Any] = {"imatrix": str(self.imatrix)} if "imatrix" in known else {}
        searched |= {"refine": True} if "refine" in known else {}
        ways: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
            "plain": ({}, {}),
            "searched": (searched, {}),
            "tuned": (searched, {"tune": ("codes",), "statistics": self.text}),
        }
        first = None
        for way, (options, settings) in ways.items():
            if way == "searched" and not searched:
                continue
            began = time.perf_counter()
            n_bytes, found = self._measure(target, quant, options, settings)
            seconds = time.perf_counter() - began
            means = np.array([each.mean() for each in found])
            kld, p99 = np.concatenate(found).mean(), np.quantile(np.concatenate(found), 0.99)
            first = kld if first is None else first
            error = means.std(ddof=1) / np.sqrt(len(means))
            print(
                f"{self.graph.name:18} {target + ' ' + quant:26} {way:9} {n_bytes:10,} {kld:9.5f} {error:8.5f} {p99:8.4f} "
                f"{100 * (kld / first - 1):+7.1f}% {seconds:8.1f}",
                flush=True,
            )

    def _measure(
        self, target: str, quant: str, options: Mapping[str, Any], settings: Mapping[str, Any]
    ) -> tuple[int, list[np.ndarray]]:
        with TemporaryDirectory(dir=self.folder) as out:
            done = convert(
                self.graph, target=target, quant=quant, out=Path(out), options=options, validate_after=False, **settings
            )
            (artifact,) = done.artifacts
            decoded = get_target(target).read(artifact)
            logits = Forward(self.graph.with_weights(decoded)).prefill(self.scored)[0]
            return done.plans[0].tensor_bytes, [position_kld(*pair) for pair in zip(self.wanted, logits, strict=True)]


def _chunks(graph: WeightGraph, path: Path) -> list[Sequence[int]]:
    (source,) = sources_of([path], with_default=False)
    return list(chunks_of(graph, source, CHUNK_TOKENS, print))


def _mixed(texts: corpus.Texts) -> str:
    """Documents of all kinds, turn by turn, so that any part of the text holds some of each."""
    chats = [
        "".join(render(each.messages, tools=each.tools) + "\n" for each in texts.dialogues[i::12][:25])
        for i in range(12)
    ]
    prose = ["\n".join(texts.prose[i::12])[:6000] for i in range(12)]
    code = ["\n".join(texts.code[i::12])[:6000] if len(texts.code) > 12 else "" for i in range(12)]
    if len(texts.code) <= 12:
        whole = "\n".join(texts.code)
        code = [whole[i * 3000 : (i + 1) * 3000] for i in range(12)]
    return "\n".join(part for parts in zip(chats, prose, code, strict=True) for part in parts)


if __name__ == "__main__":
    main()
