"""An importance matrix from texts: how much each column of every weight is used."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from ..graph.errors import InputError, UsageError
from ..graph.graph import WeightGraph
from ..graph.json_text import parse_json
from ..graph.progress import SILENT, Progress
from ..graph.source.chat import Refusal, try_chats

CHUNK_TOKENS = 512
LEAST_CHUNK_TOKENS = 16
# The text that comes with the tool, of this project's own words, in the format of prompt sets.
DEFAULT_TEXT = "calibration.jsonl"

Chunk = Sequence[int]


@dataclass(frozen=True)
class Source:
    """A text to run. Of the one that comes with the tool `path` is None."""

    name: str
    sha256: str
    content: str
    path: Path | None


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
    with_default: bool = False,
    chunk_size: int = CHUNK_TOKENS,
    max_chunks: int | None = None,
    progress: Progress = SILENT,
) -> Measured:
    """Runs texts, or `.jsonl` of conversations, through a checkpoint. Units: `chunk_size` in tokens.

    Where there is none, and `with_default` beside them, the text that comes with the tool.
    Raises: UsageError for a model without tokenizer or template; InputError for a file that cannot be read.
    """
    from ..quantize.calibration import calibrate
    from ..quantize.gguf_file.tensor_names import tensor_name
    from ..quantize.imatrix import importance_bytes

    sources = sources_of(texts, with_default=with_default)
    chunks = [chunk for source in sources for chunk in chunks_of(graph, source, chunk_size, progress.note)][:max_chunks]
    n_tokens = sum(map(len, chunks))
    progress.start("calibrating", n_tokens, "tokens")
    measured = calibrate(graph, chunks, advance=progress.advance)
    uses = {tensor_name(address, graph.config.family): use for address, use in measured.items()}
    names = tuple(source.name for source in sources)
    content = importance_bytes(uses, datasets=names, n_chunks=len(chunks), chunk_size=chunk_size)
    never_hit = {name: list(use.never_hit) for name, use in uses.items() if use.never_hit}
    return Measured(content, len(uses), len(chunks), n_tokens, never_hit)


def sources_of(texts: Sequence[Path], *, with_default: bool) -> list[Source]:
    """The texts, read. Raises: InputError for one that cannot be."""
    found = [_read(path) for path in texts]
    return [_default(), *found] if with_default or not found else found


def chunks_of(graph: WeightGraph, source: Source, chunk_size: int, note: Callable[[str], None]) -> Iterable[Chunk]:
    """Token ids of a text, at most chunk_size together: cut anywhere, of a file's conversations only the start.

    Raises: UsageError for a model without tokenizer or template; InputError for a text of nothing.
    """
    tokenizer = graph.tokenizer
    if tokenizer is None:
        raise UsageError(f"{graph.folder}: has no tokenizer.json, which calibration needs")
    start = list(tokenizer.opening)
    if source.path is None:
        for ids in _default_ids(graph, note):
            is_begun = list(ids[: len(start)]) == start
            yield from _cut(ids[len(start) :] if is_begun else ids, start, chunk_size)
        return
    if source.path.suffix == ".jsonl":
        texts = _rendered(graph, source.path, source.content, note)
        rendered = [tokenizer.encode(text, special=False)[:chunk_size] for text in texts]
        if not any(rendered):
            raise InputError(f"{source.path}: holds no conversation")
        yield from rendered
        return
    ids = tokenizer.encode(source.content, special=False)
    if not ids:
        raise InputError(f"{source.path}: holds no text")
    yield from _cut(ids, start, chunk_size)


def _read(path: Path) -> Source:
    try:
        data = path.read_bytes()
        text = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8").read()  # with lines that end as in any text
        return Source(path.name, hashlib.sha256(data).hexdigest(), text, path)
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read as text: {error}") from None


def _default() -> Source:
    data = (files(__package__) / DEFAULT_TEXT).read_bytes()
    return Source(DEFAULT_TEXT, hashlib.sha256(data).hexdigest(), data.decode(), None)


def _default_ids(graph: WeightGraph, note: Callable[[str], None]) -> Iterable[Chunk]:
    """Ids of every text and conversation that comes with the tool, as this model's tokenizer and template give them."""
    from ..validate.prompts import encode_prompts, load_prompts

    prompts = load_prompts(Path(str(files(__package__) / DEFAULT_TEXT)))
    vocab_size = graph.config.vocab_size
    for prompt in encode_prompts(prompts, graph.tokenizer, graph.assets, vocab_size=vocab_size, note=note):
        yield prompt.token_ids


def _cut(ids: Chunk, start: Chunk, chunk_size: int) -> Iterable[Chunk]:
    """Pieces of at most `chunk_size`, each with what a text starts with before it."""
    step = chunk_size - len(start)
    for at in range(0, len(ids), step):
        yield [*start, *ids[at : at + step]]


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
