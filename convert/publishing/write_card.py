"""`card`: the model card of a folder, in it, listed by its manifest as ours."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ...graph.errors import UsageError
from ...graph.files import hash_files, is_file, replace_text
from ..destination import published_alone
from ..manifest import MANIFEST_FILE, load_manifest
from .assemble import card_source, listing_card
from .card import card_text
from .contents import compose
from .gate import refuse_unproven
from .names import CARD_FILE
from .repositories import assign, choose, open_folder


def write_card(
    folder: Path, to: str, *, only: Sequence[str] = (), base_model: str | None = None, overwrite: bool = False
) -> Path:
    """Writes the card that the repository `to` of a folder gets; its path.

    Raises: UsageError for a card that is there and not ours, unless `overwrite` is given, and where artifacts of a folder
    belong to several repositories, each of which has a card of its own; as `assemble` for what may not be published.
    """
    manifest = open_folder(folder)
    entries = choose(folder, manifest, only)
    assigned = assign(manifest, entries, to)
    refuse_unproven(folder, entries)
    if len(assigned) > 1:
        raise UsageError(
            f"{folder}: {' and '.join(assigned)} get a card each when they are published; choose one with --only"
        )
    path = folder / CARD_FILE
    listed = (manifest.shared or {}).get(CARD_FILE)
    is_there = path.is_symlink() or is_file(path)
    if is_there and not overwrite and (listed is None or hash_files([path], jobs=1) != [listed["sha256"]]):
        raise UsageError(f"{path}: is there, not as lfm-convert wrote it; --overwrite replaces it")
    contents = compose(folder, manifest, entries, next(iter(assigned)))
    text = card_text(card_source(contents, base_model=base_model))
    with published_alone(folder):
        replace_text(path, text)
        now = load_manifest(folder) or manifest
        replace_text(folder / MANIFEST_FILE, listing_card(now, text.encode()).as_noted())
    return path
