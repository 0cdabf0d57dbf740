"""What `sign` adds to a release: a bill of materials, a statement of provenance, a signature over everything."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

from ...graph.errors import UsageError
from ...graph.files import is_file, replace_text
from ...graph.progress import SILENT, Progress
from ..destination import published_alone
from ..manifest import MANIFEST_FILE, Manifest, this_tool
from .contents import refuse_changed, release_of
from .names import CARD_FILE, PROOFS, SBOM_FILE, SIGNATURE_FILE, STATEMENT_FILE
from .repositories import open_folder, refuse_incomplete
from .sbom import bill_of_materials
from .signature import sign_files
from .statement import provenance


def make_proofs(
    manifest: Manifest, files: Mapping[str, Path | bytes], hashes: Mapping[str, str], *, name: str, key: Path | None
) -> dict[str, bytes]:
    """The proofs of a release by name; without a key no signature. `hashes` are the sha256 of those files that lie here.

    Raises: InputError for a key that is none; BackendError without the extra `release`.
    """
    made = {SBOM_FILE: bill_of_materials()}
    texts = {path: content for path, content in files.items() if isinstance(content, bytes)}
    known = {**hashes, **{path: hashlib.sha256(data).hexdigest() for path, data in {**texts, **made}.items()}}
    made[STATEMENT_FILE] = provenance(manifest, known)
    if key is not None:
        made[SIGNATURE_FILE] = sign_files({**files, **made}, name, key)
    return made


def sign(folder: Path, *, key: Path | None, overwrite: bool = False, progress: Progress = SILENT) -> list[Path]:
    """Writes the proofs of a folder into it, and returns their paths. Without a key there is no signature.

    Raises: UsageError for proofs that are there already, unless `overwrite` is given; InputError for a file that is not
    the one which was converted, or a key that is none; BackendError without the extra `release`.
    """
    manifest = open_folder(folder)
    refuse_incomplete(folder, manifest)
    there = [name for name in PROOFS if is_file(folder / name)]
    if there and not overwrite:
        raise UsageError(
            f"{folder}: {', '.join(there)} {'is' if len(there) == 1 else 'are'} there; --overwrite replaces"
        )
    if not is_file(folder / CARD_FILE):
        progress.note(f"{folder}: has no {CARD_FILE}, and can be published with one only if it is there before signing")
    if manifest.tool != this_tool():
        progress.note(
            f"{folder / MANIFEST_FILE}: was written in another environment than this, which {SBOM_FILE} is of"
        )
    release = release_of(folder, manifest)
    hashes = refuse_changed(release, progress=progress)
    made = make_proofs(manifest, release.files, hashes, name=folder.absolute().name, key=key)
    with published_alone(folder):
        for name in PROOFS:
            if name in made:
                replace_text(folder / name, made[name].decode())
            else:
                (folder / name).unlink(missing_ok=True)  # of before: it would not be of these files
    return [folder / name for name in made]
