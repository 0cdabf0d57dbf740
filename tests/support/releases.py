"""Releases whose artifacts are converted as ever and compared by a stand-in, so that what is tested is what runs when.

python tests/support/releases.py release recipe.toml      # the command line with that stand-in
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lfm_convert.convert import pipeline
from lfm_convert.graph.files import digest
from lfm_convert.targets.target import Artifact
from lfm_convert.validate.metrics import Metrics
from lfm_convert.validate.results import ArtifactResult, Occasion, Report, Verdict, describe_environment

METRICS = Metrics(
    n_prompts=2, n_positions=9, finite=True, kld_mean=0.1, kld_se=0.01, kld_median=0.05, kld_p99=0.9, kld_p999=1.5,
    kld_max=2.5, same_top1=0.8, same_top1_se=0.01, top5_overlap=0.9, ppl_ratio=1.04, ppl_ratio_se=0.01,
    prob_change_mean=-0.01, prob_change_rms=0.1, max_abs_logit=3.0, worst=(),
)  # fmt: skip


class StandIn:
    """In place of the pipeline's `convert`, which it calls, of `validate` and of `keep_reference`.

    `converted` and `validated` are the quants that were asked for; those in `broken` do not convert.
    """

    def __init__(self) -> None:
        self.converted: list[str] = []
        self.validated: list[str] = []
        self.references = 0
        self.broken: dict[str, Exception] = {}
        self._convert = pipeline.convert

    def install(self, patch: Any) -> StandIn:
        """`patch(module, name, value)` sets an attribute."""
        for name in ("convert", "validate", "keep_reference"):
            patch(pipeline, name, getattr(self, name))
        return self

    def convert(self, *arguments: Any, quant: str, **options: Any) -> Any:
        self.converted.append(quant)
        if quant in self.broken:
            raise self.broken[quant]
        return self._convert(*arguments, quant=quant, **options)

    def validate(self, artifacts: Sequence[Artifact], *, reference: Any, source_hashes: Any, **options: Any) -> Report:
        self.validated += [each.quant for each in artifacts]
        results = tuple(
            ArtifactResult(
                artifact=each,
                backend="a stand-in",
                verdict=Verdict.PASS,
                size_bytes=each.size_bytes,
                run_bytes=1,
                metrics=METRICS,
                seconds=0.1,
            )
            for each in artifacts
        )
        return Report(
            reference.name,
            results,
            describe_environment(threads=1),
            Occasion(suite="smoke", checkpoint_sha256=digest(source_hashes)),
        )

    def keep_reference(self, *arguments: Any, **options: Any) -> None:
        self.references += 1

    def take(self) -> tuple[list[str], list[str]]:
        """What was converted and validated since the last time."""
        found = self.converted, self.validated
        self.converted, self.validated = [], []
        return found


def tree(folder: Path, *, hidden: bool = False) -> dict[str, str]:
    """sha256 of every file by path; without what a release keeps for itself."""
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and (hidden or not any(part.startswith(".") for part in path.relative_to(folder).parts))
    }


if __name__ == "__main__":
    from lfm_convert.convert.cli.main import run

    StandIn().install(setattr)
    run()
