"""`card`: the model card of a folder, in it, listed by its manifest as ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from ...graph.errors import UsageError
from ...graph.files import is_file, replace_text
from ...graph.source.assets import LICENSES
from ..artifacts import is_own
from ..destination import published_alone
from ..manifest import MANIFEST_FILE, load_manifest
from .assemble import known_base, listing_card, users_card
from .card import CardSource, card_text, refuse_lost_licence
from .gate import refuse_unproven
from .names import CARD_FILE
from .repositories import assign, choose, open_folder, refuse_incomplete


def write_card(
    folder: Path, to: str, *, only: Sequence[str] = (), base_model: str | None = None, overwrite: bool = False
) -> Path:
    """Writes the card that the repository `to` of a folder gets; its path.

    Raises: UsageError for a card that is there and not ours, unless `overwrite` is given, and where artifacts of a folder
    belong to several repositories, each of which has a card of its own; as `assemble` for what may not be published.
    """
    manifest = open_folder(folder)
    refuse_incomplete(folder, manifest)
    entries = choose(folder, manifest, only)
    assigned = assign(manifest, entries, to)
    refuse_unproven(folder, entries)
    if len(assigned) > 1:
        raise UsageError(
            f"{folder}: {' and '.join(assigned)} get a card each when they are published; choose one with --only"
        )
    path = folder / CARD_FILE
    listed = (manifest.shared or {}).get(CARD_FILE)
    if (
        not overwrite
        and (path.is_symlink() or is_file(path))
        and (listed is None or not is_own(path, folder) or users_card(folder, manifest) is not None)
    ):
        raise UsageError(f"{path}: is there, not as lfm-convert wrote it; --overwrite replaces it")
    license_file = next((name for name in LICENSES if is_file(folder / name)), None)
    refuse_lost_licence(folder, manifest, license_file)
    text = card_text(
        CardSource(
            repo=next(iter(assigned)),
            target=entries[0]["target"],
            manifest=replace(manifest, artifacts=tuple(entries)),
            base_model=known_base(manifest, base_model),
            license_file=license_file,
        )
    )
    with published_alone(folder):
        replace_text(path, text)
        now = load_manifest(folder) or manifest
        replace_text(folder / MANIFEST_FILE, listing_card(now, text.encode()).as_noted())
    return path
