"""A folder of statistics from texts: what `lfm-convert calibrate MODEL -o FOLDER` writes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..graph.errors import InputError, UsageError
from ..graph.files import digest, hash_files
from ..graph.graph import WeightGraph
from ..graph.json_text import read_object
from ..graph.progress import SILENT, Progress
from ..quantize.statistics.layout import STATISTICS_FILE, VERSION, moments_bytes
from .calibration import CHUNK_TOKENS, Chunk, Source, chunks_of, sources_of
from .destination import Destination, Staging, owned
from .manifest import hash_source

# Fewer say nothing of what a model does.
LEAST_TOKENS = 256
_OURS = ".lfm-"  # how names of an unfinished run begin
_SMALL_BYTES = 64 << 20  # vectors, tokens and the importance of the largest model


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What there is to say of a folder that was written. `borrowed` is as statistics.json has it."""

    folder: Path
    n_weights: int
    n_chunks: int
    n_tokens: int
    borrowed: dict[str, dict[str, dict[str, Any]]]


def write_statistics(
    graph: WeightGraph,
    texts: Sequence[Path],
    out: Path,
    *,
    with_default: bool = False,
    chunk_size: int = CHUNK_TOKENS,
    max_chunks: int | None = None,
    seed: int = 0,
    moments: bool = False,
    overwrite: bool = False,
    resume: bool = False,
    progress: Progress = SILENT,
) -> Gathered:
    """Runs texts, or the one that comes with the tool, through a checkpoint and back. Units: `chunk_size` in tokens.

    Whatever happens, the folder holds the old statistics or the whole new ones. With `resume` what an earlier run over
    the same tokens left is gone on with, and is left to a later one if this one ends early.
    Raises: UsageError for a folder that is there already, or of something else; InputError for too little text, and as
    `measure`; DiskError if there is no room.
    """
    refuse_in_the_way(out, overwrite=overwrite)
    sources = sources_of(texts, with_default=with_default)
    found = [(chunk, source) for source in sources for chunk in chunks_of(graph, source, chunk_size, progress.note)]
    if graph.config.vectors is not None:
        raise UsageError(f"{graph.name}: gives vectors, and statistics are taken of what a model predicts")
    taken = found[:max_chunks]
    n_tokens = sum(len(chunk) for chunk, _ in taken)
    if n_tokens < LEAST_TOKENS:
        names = ", ".join(source.name for source in sources)
        raise InputError(
            f"{names}: {n_tokens} tokens are run: expected at least {LEAST_TOKENS}, since fewer prove nothing"
        )
    checkpoint = digest(hash_source(graph, progress=progress))
    with owned(out) as destination:
        destination.need(_sizes(graph, n_tokens, moments=moments))
        work = _work(checkpoint, [chunk for chunk, _ in taken], seed=seed, moments=moments)
        with destination.stage(work=work, resume=resume) as staging:
            facts = _gather(graph, taken, staging, chunk_size=chunk_size, seed=seed, moments=moments, progress=progress)
            facts |= {"checkpoint": checkpoint, "texts": _told(sources, taken)}
            _write_facts(graph, staging, facts, progress)
            graph.check_unchanged()
            staging.publish(remove=_listed(destination))
    return Gathered(
        folder=out,
        n_weights=len(facts["tokens"]),
        n_chunks=len(taken),
        n_tokens=n_tokens,
        borrowed=facts["borrowed"],
    )


def _work(checkpoint: str, chunks: Sequence[Chunk], *, seed: int, moments: bool) -> str:
    """What a run does, by which another may go on with it."""
    said = json.dumps([VERSION, checkpoint, list(map(list, chunks)), seed, moments])
    return hashlib.sha256(said.encode()).hexdigest()


def _gather(
    graph: WeightGraph,
    taken: Sequence[tuple[Chunk, Source]],
    staging: Staging,
    *,
    chunk_size: int,
    seed: int,
    moments: bool,
    progress: Progress,
) -> dict[str, Any]:
    from ..quantize.statistics.gather import gather
    from ..quantize.statistics.writing import write_gathered

    chunks = [chunk for chunk, _ in taken]
    run = gather(
        graph,
        chunks,
        seed=seed,
        scratch=staging.scratch,
        moments=staging.folder if moments else None,
        progress=progress,
    )
    datasets = tuple(dict.fromkeys(source.name for _, source in taken))
    facts = write_gathered(run, chunks, staging.folder, datasets=datasets, chunk_size=chunk_size)
    return {**facts, "seed": seed, "has_moments": moments}


def _write_facts(graph: WeightGraph, staging: Staging, facts: dict[str, Any], progress: Progress) -> None:
    """Writes statistics.json: by keys that are in order, and with no time and no place on a disk."""
    from ..quantize.statistics.statistics import sample_hash, template_hash

    paths = sorted(path for path in staging.folder.rglob("*") if path.is_file())
    hashes = hash_files(paths, jobs=1, progress=progress)
    files = {
        path.relative_to(staging.folder).as_posix(): {"bytes": path.stat().st_size, "sha256": sha256}
        for path, sha256 in zip(paths, hashes, strict=True)
    }
    whole = {
        "version": VERSION,
        "model": graph.name,
        "sample": sample_hash(graph),
        "template": template_hash(graph),
        **facts,
        "files": files,
    }
    (staging.folder / STATISTICS_FILE).write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")


def _told(sources: Sequence[Source], taken: Sequence[tuple[Chunk, Source]]) -> list[dict[str, Any]]:
    """Name, hash and tokens of every text of which some were run."""
    tokens = {source: sum(len(chunk) for chunk, whose in taken if whose is source) for source in sources}
    return [{"name": s.name, "sha256": s.sha256, "tokens": n} for s, n in tokens.items() if n]


def _sizes(graph: WeightGraph, n_tokens: int, *, moments: bool) -> dict[str, int]:
    """What the folder needs, by file; what is there meanwhile is one of them."""
    from ..quantize.statistics.gather import scratch_bytes

    needed = {STATISTICS_FILE: _SMALL_BYTES + 4 * graph.config.vocab_size, "scratch": scratch_bytes(graph, n_tokens)}
    return {**needed, "moments": moments_bytes(graph)} if moments else needed


def refuse_in_the_way(out: Path, *, overwrite: bool) -> None:
    """Raises: UsageError for a file, for statistics that may not be replaced, and for a folder of something else."""
    if not out.exists():
        return
    if not out.is_dir():
        raise UsageError(f"{out}: is a file: expected a folder, or a file that ends in .gguf")
    if (out / STATISTICS_FILE).is_file():
        if not overwrite:
            raise UsageError(f"{out}: already exists; --overwrite replaces it")
        return
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith(_OURS))
    if others:
        raise UsageError(
            f"{out}: holds {others[0]} and no {STATISTICS_FILE}: expected a folder of its own, or none yet"
        )


def _listed(destination: Destination) -> list[str]:
    """The files of the statistics that are there, which new ones replace."""
    try:
        files = read_object(destination.folder / STATISTICS_FILE).get("files")
    except (FileNotFoundError, InputError):
        return []
    names = files if isinstance(files, dict) else {}
    return [name for name in names if ".." not in Path(name).parts and not Path(name).is_absolute()]
