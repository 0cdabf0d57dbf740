"""A model hub as `publish` needs it: huggingface_hub's calls, tried again where that helps, and one sentence where not.

huggingface_hub tries most calls again by itself, but none that create something; it waits as long as a hub asks it to,
and for an answer without end. Here every call is tried again, each knowing how to see that it was carried out already,
and waiting has limits.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, TypeVar
from urllib.parse import quote

from ...graph.errors import LfmConvertError, NetworkError, UsageError
from ...graph.progress import SILENT, Progress
from ...graph.source.hub import is_offline

_T = TypeVar("_T")

TRIES = 5
# What is waited before the second try; twice as long before each that follows.
_FIRST_WAIT_S = 2.0
# The longest that a hub may ask to wait, and that an answer may take.
MAX_WAIT_S = 300
_HOW_TO_GO_ON = "; what has arrived is not sent again by the next run"
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)
_DRAFT, _OPEN = "draft", "open"
MAIN = "main"


@dataclass(frozen=True, kw_only=True)
class RemoteFile:
    """A file of a repository. `sha256` is known of large ones; of others the id of their git blob is.

    Units: bytes.
    """

    size: int
    blob_id: str
    sha256: str | None


@dataclass(frozen=True, kw_only=True)
class PullRequest:
    """One of ours. Its branch is `ref`; nobody is asked to merge one that `is_draft`."""

    number: int
    ref: str
    url: str
    is_draft: bool


@dataclass(frozen=True, kw_only=True)
class Hub:
    """The hub at HF_ENDPOINT, as the owner of a token. Every method raises NetworkError, or UsageError for a token that
    is none.
    """

    token: str
    progress: Progress = SILENT

    def owner(self) -> str:
        """Whose token it is."""
        return str(self._try("asking whose token this is", lambda api: api.whoami()["name"]))

    def create(self, repo: str, *, private: bool) -> None:
        """Makes a repository if there is none. Raises: UsageError where it must be private and is not."""
        self._try(
            f"creating {repo}", lambda api: api.create_repo(repo, private=private or None, exist_ok=True), repo=repo
        )
        if private and not self._try(f"looking at {repo}", lambda api: api.repo_info(repo).private, repo=repo):
            raise UsageError(f"--private: {repo} is there already and public: choose another name, or leave it out")

    def create_branch(self, repo: str, branch: str) -> None:
        """Makes a branch if there is none."""
        self._try(
            f"creating branch {branch} of {repo}",
            lambda api: api.create_branch(repo, branch=branch, exist_ok=True),
            repo=repo,
        )

    def pull_request(self, repo: str, title: str, description: str) -> PullRequest:
        """Our pull request of that title that is not closed yet, else a new one, a draft."""
        owner = self.owner()

        def find_or_create(api: Any) -> Any:
            # Looked for at each try: what answered last may have made one and lost the answer.
            for each in api.get_repo_discussions(repo, discussion_type="pull_request", author=owner):
                if each.title == title and each.author == owner and each.status in (_DRAFT, _OPEN):
                    return each
            return api.create_pull_request(repo, title=title, description=description)

        found = self._try(f"opening a pull request of {repo}", find_or_create, repo=repo)
        return PullRequest(number=found.num, ref=found.git_reference, url=found.url, is_draft=found.status == _DRAFT)

    def open_draft(self, repo: str, request: PullRequest) -> None:
        """Has a draft reviewed."""
        if request.is_draft:
            self._try(
                f"opening pull request {request.number} of {repo}",
                lambda api: api.change_discussion_status(repo, request.number, _OPEN),
                repo=repo,
            )

    def head(self, repo: str, ref: str) -> str:
        """The commit that a branch is at."""
        return str(
            self._try(f"looking at {ref} of {repo}", lambda api: api.repo_info(repo, revision=ref).sha, repo=repo)
        )

    def tree(self, repo: str, commit: str) -> dict[str, RemoteFile]:
        """Every file of a commit by path."""

        def files(api: Any) -> dict[str, RemoteFile]:
            listed = api.list_repo_tree(repo, recursive=True, revision=commit)
            return {
                each.path: RemoteFile(
                    size=each.size, blob_id=each.blob_id, sha256=None if each.lfs is None else each.lfs.sha256
                )
                for each in listed
                if hasattr(each, "blob_id")
            }

        return self._try(f"listing the files of {repo}", files, repo=repo)

    def read(self, repo: str, commit: str, path: str) -> bytes:
        """The content of a small file."""

        def content(api: Any) -> bytes:
            from huggingface_hub import hf_hub_url
            from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

            url = hf_hub_url(repo, path, revision=commit, endpoint=api.endpoint)
            response = get_session().get(url, headers=build_hf_headers(token=self.token))
            hf_raise_for_status(response)
            return bytes(response.content)

        return self._try(f"reading {path} of {repo}", content, repo=repo)

    @contextmanager
    def store(self, repo: str, ref: str) -> Iterator[None]:
        """Has large files go through Xet where there is one, else as LFS objects, which huggingface_hub would not try."""
        from huggingface_hub import constants

        if constants.HF_HUB_DISABLE_XET or find_spec("hf_xet") is None or self._offers_xet(repo, ref):
            yield
            return
        self.progress.note(f"{repo}: the hub offers no Xet, and files are sent as LFS objects")
        constants.HF_HUB_DISABLE_XET = True
        try:
            yield
        finally:
            constants.HF_HUB_DISABLE_XET = False

    def _offers_xet(self, repo: str, ref: str) -> bool:
        def asked(api: Any) -> bool:
            from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

            url = f"{api.endpoint}/api/models/{repo}/xet-write-token/{quote(ref, safe='')}"
            response = get_session().get(url, headers=build_hf_headers(token=self.token))
            if response.status_code == 404:
                return False
            hf_raise_for_status(response)
            return True

        return self._try(f"asking how {repo} takes files", asked, repo=repo)

    def send(self, repo: str, ref: str, path: str, addition: Any) -> None:
        """Has the hub take what it stores apart from git of a file, if it has not yet. `addition` is huggingface_hub's."""
        self._try(
            f"sending {path} to {repo}",
            lambda api: api.preupload_lfs_files(repo, [addition], revision=ref, free_memory=False),
            repo=repo,
        )

    def commit(
        self,
        repo: str,
        ref: str,
        additions: Sequence[Any],
        *,
        parent: Callable[[], str | None],
        message: str,
    ) -> str:
        """One commit of files; its id. At each try `parent` gives the commit to begin from, or None if all is there."""

        def committed(api: Any) -> str:
            begun = parent()
            if begun is None:
                return str(api.repo_info(repo, revision=ref).sha)
            info = api.create_commit(
                repo, additions, commit_message=message, revision=ref, parent_commit=begun, num_threads=1
            )
            return str(info.oid)

        return str(self._try(f"committing to {repo}", committed, repo=repo))

    def _try(self, doing: str, call: Callable[[Any], _T], *, repo: str = "") -> _T:
        """What a call gives, tried again after a failure that may pass. Raises: NetworkError, UsageError."""
        from huggingface_hub import HfApi

        if is_offline():
            raise NetworkError(f"{doing}: HF_HUB_OFFLINE says that no hub may be asked")
        with _within_limits(doing):
            for left in reversed(range(TRIES)):
                try:
                    return call(HfApi(token=self.token))
                except LfmConvertError:
                    raise
                except Exception as error:
                    cause = _cause(error)
                    wait = _wait(cause, _FIRST_WAIT_S * 2 ** (TRIES - 1 - left))
                    if (wait is None or not left) and (told := _explained(cause, doing, repo)) is not None:
                        raise told from error
                    if wait is None:
                        raise
                    self.progress.note(f"{doing}: {_short(cause)}; tried again in {wait:.0f} s")
                time.sleep(wait)
        raise AssertionError("unreachable")


def find_token() -> str:
    """The token of the environment or of `hf auth login`. Raises: UsageError without one; NetworkError from OIDC."""
    from huggingface_hub import get_token

    try:
        token = get_token()
    except Exception as error:
        raise NetworkError(f"no token: {_short(error)}") from error
    if not token:
        raise UsageError("no token for the hub: set HF_TOKEN to one that may write, or run 'hf auth login'")
    return token


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps huggingface_hub's bars and warnings, which have addresses with keys in them, off the console."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars, logging

    verbosity, had_bars = logging.get_verbosity(), not are_progress_bars_disabled()
    logging.set_verbosity_error()
    if had_bars:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            enable_progress_bars()


@contextmanager
def _within_limits(doing: str) -> Iterator[None]:
    """Has huggingface_hub wait for an answer, or because it is asked to, no longer than `MAX_WAIT_S`."""
    from huggingface_hub.utils import get_session

    def refuse_long_wait(response: Any) -> None:
        wait = _asked_wait(response.headers)
        if response.status_code in _TRANSIENT and wait is not None and wait > MAX_WAIT_S:
            raise NetworkError(f"{doing}: the hub is busy ({response.status_code}) and asks to come back in {wait} s")

    session = get_session()
    hooks, timeout = session.event_hooks, session.timeout
    session.event_hooks = {**hooks, "response": [*hooks.get("response", []), refuse_long_wait]}
    session.timeout = MAX_WAIT_S
    try:
        yield
    finally:
        session.event_hooks, session.timeout = hooks, timeout


def _cause(error: Exception) -> BaseException:
    """huggingface_hub wraps what ends the sending of a file."""
    found: BaseException = error
    while type(found) is RuntimeError and found.__cause__ is not None:
        found = found.__cause__
    return found


def _wait(error: BaseException, otherwise: float) -> float | None:
    """Seconds until a call may be tried again; None if that helps nothing."""
    status = _status(error)
    if status is not None:
        asked = _asked_wait(_response(error).headers)
        if status not in _TRANSIENT or (asked is not None and asked > MAX_WAIT_S):
            return None
        return otherwise if asked is None else asked
    return otherwise if _is_broken(error) or isinstance(error, ConnectionError | TimeoutError) else None


def _is_broken(error: BaseException) -> bool:
    """Whether a connection failed. By name: which library carries requests depends on huggingface_hub's version."""
    return any(kind.__name__ == "TransportError" for kind in type(error).__mro__)


def _asked_wait(headers: Mapping[str, str]) -> int | None:
    """What a hub asks to wait, in seconds, where it says it as a number."""
    text = headers.get("Retry-After", "")
    return int(text) if text.isdecimal() else None


def _response(error: BaseException) -> Any:
    return getattr(error, "response", None)


def _status(error: BaseException) -> int | None:
    return getattr(_response(error), "status_code", None)


def _explained(error: BaseException, doing: str, repo: str) -> LfmConvertError | None:
    """The sentence for a failure that stays; None for one that is no hub's and no network's."""
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError

    if isinstance(error, LfmConvertError):
        return error
    status = _status(error)
    if isinstance(error, GatedRepoError):
        said = f"{repo} is gated and the token's owner is not let in: ask for access on its page"
    elif isinstance(error, RevisionNotFoundError):
        said = f"{repo} has no such branch (404)"
    elif status == 401 and not isinstance(error, RepositoryNotFoundError):
        said = "the hub does not accept the token (401): set HF_TOKEN to one that may write, or run 'hf auth login'"
    elif status == 403:
        said = f"the token may not write to {repo or 'the hub'} (403); where it may not, --pull-request asks others to"
    elif isinstance(error, RepositoryNotFoundError):
        said = f"the hub has no {repo}, or the token may not see it ({status})"
    elif status == 412:
        said = f"somebody else has committed to {repo} meanwhile (412): run the command again"
    elif status is not None:
        said = f"the hub answers {status} to each of {TRIES} tries" if status in _TRANSIENT else _short(error)
    elif isinstance(error, ValueError):
        said = f"the hub refuses it: {_short(error)}"
    elif isinstance(error, RuntimeError):  # hf_xet's
        said = f"it fails: {_short(error)}; HF_HUB_DISABLE_XET=1 sends without Xet"
    elif isinstance(error, OSError) or _is_broken(error):
        said = f"the hub cannot be reached: {_short(error)}"
    else:
        return None
    passes = status in _TRANSIENT or (status is None and not isinstance(error, ValueError))
    return NetworkError(f"{doing}: {said}{_HOW_TO_GO_ON if passes else ''}")


def _short(error: BaseException) -> str:
    """What a failure says, on one line and without the address, which may have a key in it."""
    status = _status(error)
    if status is not None:
        said = getattr(error, "server_message", None) or _response(error).reason_phrase
        return " ".join(f"{status} {said}".split())[:200]
    return " ".join((str(error) or type(error).__name__).split())[:200]
