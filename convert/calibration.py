"""An importance matrix from texts: how much each column of every weight is used."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..graph.errors import InputError, UsageError
from ..graph.graph import WeightGraph
from ..graph.json_text import parse_json
from ..graph.progress import SILENT, Progress
from ..graph.source.chat import Refusal, try_chats

CHUNK_TOKENS = 512
LEAST_CHUNK_TOKENS = 16


@dataclass(frozen=True)
class Measured:
    """The file that llama-imatrix would write, and what there is to say of it. `never_hit` are experts by weight."""

    content: bytes
    n_weights: int
    n_chunks: int
    n_tokens: int
    never_hit: Mapping[str, Sequence[int]]


def measure(
    graph: WeightGraph,
    texts: Sequence[Path],
    *,
    chunk_size: int = CHUNK_TOKENS,
    max_chunks: int | None = None,
    progress: Progress = SILENT,
) -> Measured:
    """Runs texts, or `.jsonl` of conversations, through a checkpoint. Units: `chunk_size` in tokens.

    Raises: UsageError for a model without tokenizer or template; InputError for a file that cannot be read.
    """
    from ..quantize.calibration import calibrate
    from ..quantize.gguf_file.tensor_names import tensor_name
    from ..quantize.imatrix import importance_bytes

    chunks = [chunk for path in texts for chunk in chunks_of(graph, path, chunk_size, progress.note)][:max_chunks]
    n_tokens = sum(map(len, chunks))
    progress.start("calibrating", n_tokens, "tokens")
    measured = calibrate(graph, chunks, advance=progress.advance)
    uses = {tensor_name(address, graph.config.family): use for address, use in measured.items()}
    names = tuple(path.name for path in texts)
    content = importance_bytes(uses, datasets=names, n_chunks=len(chunks), chunk_size=chunk_size)
    never_hit = {name: list(use.never_hit) for name, use in uses.items() if use.never_hit}
    return Measured(content, len(uses), len(chunks), n_tokens, never_hit)


def chunks_of(graph: WeightGraph, path: Path, chunk_size: int, note: Callable[[str], None]) -> Iterable[list[int]]:
    """Token ids of a file, at most chunk_size together: cut anywhere, of conversations only the start.

    Raises: UsageError for a model without tokenizer or template; InputError for a file that cannot be read.
    """
    tokenizer, bos = graph.tokenizer, graph.config.bos_token_id
    if tokenizer is None:
        raise UsageError(f"{graph.folder}: has no tokenizer.json, which calibration needs")
    try:
        content = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None
    if path.suffix == ".jsonl":
        rendered = [
            tokenizer.encode(text, special=False)[:chunk_size] for text in _rendered(graph, path, content, note)
        ]
        if not any(rendered):
            raise InputError(f"{path}: holds no conversation")
        yield from rendered
        return
    start = [] if bos is None else [bos]
    ids = tokenizer.encode(content, special=False)
    step = chunk_size - len(start)
    if not ids:
        raise InputError(f"{path}: holds no text")
    for at in range(0, len(ids), step):
        yield start + ids[at : at + step]


def _rendered(graph: WeightGraph, path: Path, content: str, note: Callable[[str], None]) -> list[str]:
    template = graph.assets.chat_template
    if template is None:
        raise UsageError(f"{graph.folder}: has no chat template, which conversations need")
    try:
        conversations = [parse_json(line)["messages"] for line in content.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path}: expected one JSON object with 'messages' a line: {error!r}") from None
    found = try_chats(template, conversations, special_tokens=graph.assets.special_tokens)
    refusals = [each for each in found if isinstance(each, Refusal)]
    texts = [each for each in found if isinstance(each, str)]
    if refusals and not texts:
        raise InputError(f"{path}: the chat template refuses every conversation: {refusals[0].reason}")
    if refusals:
        note(
            f"{path}: {len(refusals)} of {len(found)} conversations are left out, since the chat template refuses: "
            f"{refusals[0].reason}"
        )
    return texts
