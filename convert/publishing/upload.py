"""Sends the contents of a repository to a hub and reads back what arrived."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...graph.errors import InputError, NetworkError, UsageError
from ...graph.json_text import parse_json
from ...graph.progress import SILENT, Progress
from ...graph.units import format_size
from ..manifest import MANIFEST_FILE
from .contents import Contents
from .hub import MAIN, Hub, RemoteFile
from .names import HUB_FILES, PROOFS

_SHOWN = 12  # characters of a hash
# Files above it are sent one by one, so that each that has arrived counts; a hub keeps them apart from git.
_LARGE_BYTES = 1 << 20
_LISTED = 5


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where in a repository: on a branch, which is made if there is none, or in a pull request of it."""

    branch: str | None = None
    in_pull_request: bool = False
    private: bool = False


@dataclass(frozen=True, kw_only=True)
class Published:
    """What was sent where. `files` are all that the commit holds of ours, path to sha256; `sent` those that were not
    there before. Units: bytes.
    """

    repo: str
    branch: str
    commit: str
    url: str
    pull_request: str | None
    files: Mapping[str, str]
    sent: Sequence[str]
    sent_bytes: int

    def lines(self) -> Iterator[str]:
        """As a person reads it."""
        told = f"{len(self.sent)} of {len(self.files)} files sent, {format_size(self.sent_bytes)}; all read back"
        yield f"{self.pull_request or self.url}  {told}"

    def to_json(self) -> dict[str, Any]:
        return {
            "repo": self.repo,
            "branch": self.branch,
            "commit": self.commit,
            "url": self.url,
            "pull_request": self.pull_request,
            "files": dict(self.files),
            "sent": list(self.sent),
            "sent_bytes": self.sent_bytes,
        }


def upload(
    contents: Contents,
    hashes: Mapping[str, str],
    hub: Hub,
    *,
    place: Place,
    message: str | None = None,
    overwrite: bool = False,
    progress: Progress = SILENT,
) -> Published:
    """Puts contents into a repository in one commit, which it reads back. `hashes` are the sha256 of its `files`.

    Raises: UsageError for files of somebody else's in the way, unless `overwrite` is given or a pull request leaves it to
    its reviewer; InputError for a file that changes meanwhile; NetworkError as `Hub`, or if the hub holds other bytes.
    """
    repo = contents.repo
    local = {path: _Local(contents, path, hashes.get(path)) for path in contents.paths}
    message = message or _message(contents, local[MANIFEST_FILE].sha256)
    hub.create(repo, private=place.private)
    request = hub.pull_request(repo, message, _DESCRIPTION) if place.in_pull_request else None
    branch = request.ref if request else place.branch or MAIN
    if request is None and branch != MAIN and not branch.startswith("refs/"):
        hub.create_branch(repo, branch)
    head = hub.head(repo, branch)
    there = hub.tree(repo, head)
    left = [path for path in local if path not in there or not local[path].is_at(there[path])]
    if request is None and not overwrite:
        _refuse_foreign(hub, repo, head, [path for path in left if path in there], there)
    _note_others(contents, there, progress)
    commit = head
    if left:
        with hub.store(repo, branch):
            commit = _send(contents, local, left, hub, branch=branch, message=message, progress=progress)
    _read_back(hub, repo, commit, local)
    if request is not None:
        hub.open_draft(repo, request)
    return Published(
        repo=repo,
        branch=branch,
        commit=commit,
        url=_url(repo, branch),
        pull_request=request.url if request else None,
        files={path: each.sha256 for path, each in local.items()},
        sent=left,
        sent_bytes=sum(local[path].size for path in left),
    )


_DESCRIPTION = (
    "Every file was validated by lfm-convert before it was sent. This becomes a pull request to be merged once the hub "
    "has been found to hold the same bytes."
)


class _Local:
    """A file to be sent: where it lies, or its content, and its hashes."""

    def __init__(self, contents: Contents, path: str, sha256: str | None) -> None:
        self.path = path
        self.content: bytes | Path = contents.texts[path] if path in contents.texts else contents.files[path]
        self.size = contents.size_of(path)
        self.sha256 = sha256 if sha256 is not None else hashlib.sha256(self._read()).hexdigest()

    def is_at(self, remote: RemoteFile) -> bool:
        """Whether the hub has the same bytes."""
        if remote.size != self.size:
            return False
        return self.sha256 == remote.sha256 if remote.sha256 is not None else self._blob_id() == remote.blob_id

    def addition(self) -> Any:
        """As huggingface_hub takes a file."""
        from huggingface_hub import CommitOperationAdd

        return CommitOperationAdd(self.path, self.content)

    def refuse_changed(self, addition: Any) -> None:
        """Raises InputError for a file that was another when it was sent."""
        info = addition.upload_info
        if info.is_hashed and info.sha256.hex() != self.sha256:
            raise InputError(
                f"{self.path}: was changed while it was sent: sha256 {info.sha256.hex()[:_SHOWN]}… is not "
                f"{self.sha256[:_SHOWN]}…; it is not part of any commit"
            )

    def _read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()

    def _blob_id(self) -> str:
        """The id that git gives a file of this content."""
        return hashlib.sha1(b"blob %d\0" % self.size + self._read(), usedforsecurity=False).hexdigest()


def _send(
    contents: Contents,
    local: Mapping[str, _Local],
    left: Sequence[str],
    hub: Hub,
    *,
    branch: str,
    message: str,
    progress: Progress,
) -> str:
    """The commit that adds the files that are left."""
    repo = contents.repo
    progress.start(f"sending to {repo}", sum(local[path].size for path in left), "bytes")
    additions = {path: local[path].addition() for path in left}
    for path, addition in additions.items():
        if local[path].size > _LARGE_BYTES:
            hub.send(repo, branch, path, addition)
            local[path].refuse_changed(addition)
            progress.advance(local[path].size)

    def parent() -> str | None:
        """None where a try before has made the commit and lost the answer."""
        head = hub.head(repo, branch)
        there = hub.tree(repo, head)
        return None if all(path in there and local[path].is_at(there[path]) for path in left) else head

    commit = hub.commit(repo, branch, list(additions.values()), parent=parent, message=message)
    progress.advance(sum(local[path].size for path in left if local[path].size <= _LARGE_BYTES))
    return commit


def _refuse_foreign(hub: Hub, repo: str, commit: str, paths: Sequence[str], there: Mapping[str, RemoteFile]) -> None:
    """Raises UsageError for files that would be replaced and that no release of ours put there."""
    if not paths:
        return
    listed = _listed(hub.read(repo, commit, MANIFEST_FILE)) if MANIFEST_FILE in there else {}
    ours = {MANIFEST_FILE, *(PROOFS if listed else ())}
    foreign = []
    for path in paths:
        if path in ours:
            continue
        found = there[path].sha256 or hashlib.sha256(hub.read(repo, commit, path)).hexdigest()
        if listed.get(path) != found:
            foreign.append(path)
    if foreign:
        raise UsageError(
            f"{repo}: {_some(foreign)} there, not as lfm-convert published it, and would be replaced: --pull-request "
            "leaves that to a reviewer, --overwrite replaces it"
        )


def _listed(manifest: bytes) -> dict[str, str]:
    """sha256 by path as a manifest on the hub has them; nothing of one that is none."""
    try:
        data = parse_json(manifest)
        files = [*data["shared"], *(file for artifact in data["artifacts"] for file in artifact["files"])]
        return {str(file["path"]): str(file["sha256"]) for file in files}
    except (ValueError, KeyError, TypeError, RecursionError):
        return {}


def _note_others(contents: Contents, there: Mapping[str, RemoteFile], progress: Progress) -> None:
    others = sorted(set(there) - set(contents.paths) - set(HUB_FILES))
    if others:
        progress.note(f"{contents.repo}: {_some(others)} there as well, and not part of this release")


def _read_back(hub: Hub, repo: str, commit: str, local: Mapping[str, _Local]) -> None:
    """Raises NetworkError for a file of a commit that is missing or has other bytes."""
    there = hub.tree(repo, commit)
    faults = []
    for path, each in local.items():
        if path not in there:
            faults.append(f"'{path}' is missing")
        elif not each.is_at(there[path]):
            remote = there[path]
            found = f"sha256 {remote.sha256[:_SHOWN]}…" if remote.sha256 else f"git blob {remote.blob_id[:_SHOWN]}…"
            faults.append(f"'{path}' has {remote.size} bytes, {found}: sent were {each.size}, {each.sha256[:_SHOWN]}…")
    if faults:
        raise NetworkError(f"{repo}: commit {commit[:_SHOWN]} does not hold what was sent: {'; '.join(faults[:20])}")


def _message(contents: Contents, manifest_sha256: str) -> str:
    """The same for the same contents, so that a run that goes on finds its own pull request."""
    quants = ", ".join(entry["quant"] for entry in contents.manifest.artifacts)
    return f"Add {contents.model} as {contents.target} {quants} (lfm-convert {manifest_sha256[:_SHOWN]})"[:200]


def _some(names: Sequence[str]) -> str:
    more = len(names) - _LISTED
    return f"{', '.join(names[:_LISTED])}{f' and {more} more' if more > 0 else ''} {'is' if len(names) == 1 else 'are'}"


def _url(repo: str, branch: str) -> str:
    from huggingface_hub import constants

    return f"{constants.ENDPOINT}/{repo}" + ("" if branch == MAIN else f"/tree/{branch}")
