"""Codes of artifacts that are tuned by a text before they are written: what is tuned, and where it is kept meanwhile."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.progress import Progress
from ..graph.roles import Address, Role
from ..quantize.encoding import Encoding
from ..quantize.tuning.store import Store
from ..quantize.tuning.tune import METHOD, can_tune, refuse_too_little, tune
from ..quantize.tuning.tuned import announced_graph, tuned_graph
from ..targets.lossy import planned
from ..targets.plans import Plan
from ..targets.target import Target

CODES = "codes"
TUNABLE = (CODES,)
# Below an artifact's folder: what is tuned of an artifact that is not there yet, for the next run to go on with.
_FOLDER = ".lfm-tuning"


@dataclass(frozen=True)
class CalibrationText:
    """The chunks of token ids of a text, as codes are tuned by them. `texts` are names and sha256; `sha256` is that of
    the statistics, or of the tokens where there are none.
    """

    chunks: tuple[tuple[int, ...], ...]
    texts: tuple[Mapping[str, str], ...]
    sha256: str


def check_tune(tune: Collection[str], text: Path | None) -> None:
    """Raises: UsageError for what cannot be tuned, and for a text without a use or a use without a text."""
    unknown = [each for each in tune if each not in TUNABLE]
    if unknown:
        raise UsageError(f"--tune {unknown[0]}: expected {' or '.join(TUNABLE)}")
    if tune and text is None:
        raise UsageError(
            "--tune needs --statistics: a folder of 'lfm-convert calibrate', or a text that the model is run on"
        )
    if text is not None and not tune:
        raise UsageError(f"--statistics {text}: is used by --tune only")


def read_text(graph: WeightGraph, path: Path, progress: Progress) -> CalibrationText:
    """The text of statistics in a folder, or of a file: of either codes need the tokens alone.

    Raises: as `open_statistics` and `chunks_of`; UsageError for too little text.
    """
    from ..quantize.statistics.statistics import open_statistics
    from .calibration import CHUNK_TOKENS, chunks_of, sources_of

    if path.is_dir():
        statistics = open_statistics(path, graph)
        texts = tuple({"name": text.name, "sha256": text.sha256} for text in statistics.texts)
        found = CalibrationText(statistics.chunks, texts, statistics.sha256)
    else:
        (source,) = sources_of([path], with_default=False)
        chunks = tuple(tuple(chunk) for chunk in chunks_of(graph, source, CHUNK_TOKENS, progress.note))
        sha256 = hashlib.sha256(repr(chunks).encode()).hexdigest()
        found = CalibrationText(chunks, ({"name": source.name, "sha256": source.sha256},), sha256)
    refuse_too_little(found.chunks)
    return found


@dataclass(frozen=True)
class CodeTuning:
    """Tunes the codes of plans of one target and graph."""

    target: Target
    graph: WeightGraph
    text: CalibrationText
    folder: Path
    jobs: int
    progress: Progress

    def announce(self, plan: Plan) -> Plan:
        """The plan as it will be with tuned codes. Raises: UsageError where no tensor can have any."""
        chosen = self._chosen(plan)
        if not chosen:
            raise UsageError(f"--tune: {plan.target} {plan.quant} stores no matrix in codes that can be tuned")
        return planned(self.target, announced_graph(self.graph, chosen, self._about), plan.quant)

    @contextmanager
    def carry_out(self, announced: Plan) -> Iterator[Plan]:
        """The plan with its codes, which are forgotten once it is written; until then an interrupted run leaves them.

        Raises: as `tune`.
        """
        chosen = self._chosen(planned(self.target, self.graph, announced.quant))
        folder = self.folder / _FOLDER / f"{announced.target}-{announced.quant}"
        store = tune(self.graph, chosen, self.text, folder, jobs=self.jobs, progress=self.progress)
        plan = planned(self.target, tuned_graph(self.graph, store, self._about), announced.quant)
        yield replace(plan, notes=(*plan.notes, _summary(store)))
        shutil.rmtree(folder)
        if not any(folder.parent.iterdir()):
            folder.parent.rmdir()

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "statistics_sha256": self.text.sha256,
            "texts": [dict(each) for each in self.text.texts],
            "codes": {"method": METHOD, "tokens": sum(map(len, self.text.chunks))},
        }

    def _chosen(self, plan: Plan) -> dict[Address, Encoding]:
        """The encodings of weights whose codes can be tuned and reach the artifact as they are."""
        weights = {each.address: each for each in self.graph.weights()}
        found: dict[Address, set[Encoding]] = {}
        for tensor in plan.tensors:
            if tensor.role is not None:
                found.setdefault((tensor.role, tensor.layer), set()).add(tensor.encoding)
        wanted = {
            address: encoding
            for address, (encoding, *others) in found.items()
            if not others and address in weights and can_tune(self.graph, weights[address], encoding)
        }
        if (Role.LM_HEAD, None) in found and self.graph.is_tied:  # stored apart: the table is looked up and no more
            wanted.pop((Role.EMBED, None), None)
        trial = planned(self.target, announced_graph(self.graph, wanted, self._about), plan.quant)
        lost = {(tensor.role, tensor.layer) for tensor in trial.tensors if not tensor.passes}
        return {address: encoding for address, encoding in wanted.items() if address not in lost}


def _summary(store: Store) -> str:
    weights = store.weights.values()
    before, after = (sum(errors) for errors in ([w.stock_error for w in weights], [w.tuned_error for w in weights]))
    share = 100 * (after / before - 1) if before else 0.0
    return (
        f"codes of {len(weights)} weights are tuned: the squared error of what they give on the text is {share:+.0f} %"
    )
