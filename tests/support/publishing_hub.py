"""A model hub on this machine that takes repositories: the HTTP API that huggingface_hub uses to create, fill and read one.

Branches, commits, pull requests, git blobs and LFS objects are kept in memory. It can be told to fail: any request may be
answered with a status, cut off before it is carried out, or cut off after. LFS objects are checked against their name.
Source: huggingface_hub 2.4.0 `hf_api.py`, `_commit_api.py`, `lfs.py`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_of_the_owner"
OWNER = "acme-bot"
_LFS = (".gguf", ".safetensors", ".onnx", ".onnx_data", ".pte", ".ptd", ".bin", ".npy")
_DATE = "2026-11-27T00:00:00.000Z"
_PAGE = 4  # files of a page of a tree: a few, so that pages are turned


@dataclass
class Fault:
    """`times` requests that match are answered with `status`, or cut off: `before` or `after` they are carried out."""

    method: str
    path: str
    status: int = 0
    cut: str = ""
    times: int = 1
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass
class File:
    """A file of a commit: its content, and whether git has it or the store of large ones."""

    data: bytes
    is_lfs: bool

    def listed(self, path: str) -> dict[str, Any]:
        sha256 = hashlib.sha256(self.data).hexdigest()
        pointer = f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(self.data)}\n".encode()
        found: dict[str, Any] = {"type": "file", "path": path, "size": len(self.data)}
        if not self.is_lfs:
            return {**found, "oid": blob_id(self.data)}
        return {**found, "oid": blob_id(pointer), "lfs": {"oid": sha256, "size": len(self.data), "pointerSize": 127}}


@dataclass
class Repository:
    """Commits by id, each with all its files, and where branches and pull requests are."""

    private: bool = False
    commits: dict[str, dict[str, File]] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    requests: list[dict[str, Any]] = field(default_factory=list)

    def commit(self, ref: str, files: dict[str, File], message: str) -> str:
        number = f"{len(self.commits)} {message}".encode()
        oid = hashlib.sha1(number, usedforsecurity=False).hexdigest()
        self.commits[oid], self.refs[ref], self.messages[oid] = files, oid, message
        return oid

    def at(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.refs.get(revision)

    def files(self, revision: str = "main") -> dict[str, bytes]:
        """Content by path."""
        return {path: file.data for path, file in self.commits[self.refs[revision]].items()}


@dataclass
class Hub:
    """What there is, what was asked, and what is to fail."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    store: dict[str, bytes] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    asked: list[tuple[str, str]] = field(default_factory=list)
    received: list[str] = field(default_factory=list)
    gated: set[str] = field(default_factory=set)
    may_write: str = "Acme"
    endpoint: str = ""
    # Lets a test change what a tree tells of a file.
    spoil: Callable[[dict[str, Any]], dict[str, Any]] = lambda listed: listed
    lock: threading.RLock = field(default_factory=threading.RLock)

    def create(self, repo: str, *, private: bool = False) -> Repository:
        found = Repository(private=private)
        found.commit("main", {".gitattributes": File(b"*.gguf filter=lfs\n", is_lfs=False)}, "initial commit")
        self.repositories[repo] = found
        return found

    def count(self, method: str, pattern: str) -> int:
        """How many requests there were."""
        return sum(asked == method and re.search(pattern, path) is not None for asked, path in self.asked)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class _Refused(Exception):
    def __init__(self, status: int, code: str = "", message: str = "", repo: str = "") -> None:
        super().__init__(message)
        self.status, self.code, self.message, self.repo = status, code, message, repo


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PUT = do_HEAD = do_GET

    def _answer(self) -> None:
        url = urlsplit(self.path)
        self.route, self.query = unquote(url.path), parse_qs(url.query)
        self.hub.asked.append((self.command, self.route))
        fault = self.hub.take_fault(self.command, self.route)
        if fault is not None and fault.cut == "before":
            self.rfile.read(min(1000, int(self.headers.get("Content-Length", 0))))
            return self._cut()
        self.body = self._read()
        if fault is not None and fault.status:
            return self._send(fault.status, {"error": "as the test wants it"}, fault.headers)
        try:
            with self.hub.lock:
                found = self._find(url.path)
        except _Refused as refused:
            headers = {"X-Error-Code": refused.code} if refused.code else {}
            told = {"error": refused.message, "url": f"{self.hub.endpoint}/{refused.repo}"}
            return self._send(refused.status, told, {**headers, "X-Error-Message": refused.message})
        if fault is not None and fault.cut == "after":
            return self._cut()
        self._send(200, *found)

    def _find(self, raw: str) -> tuple[Any, dict[str, str]]:
        """JSON or bytes, and headers. `raw` is the path with revisions as they were quoted."""
        for method, pattern, name in _ROUTES:
            found = re.fullmatch(pattern, raw)
            if found is not None and method in (self.command, "GET" if self.command == "HEAD" else ""):
                return getattr(self, name)(*map(unquote, found.groups()))
        raise _Refused(404, message=f"no route for {self.command} {raw}")

    def _whoami(self) -> tuple[Any, dict[str, str]]:
        self._need_token()
        return {"name": OWNER, "type": "user", "orgs": [{"name": "Acme"}]}, {}

    def _create_repo(self) -> tuple[Any, dict[str, str]]:
        self._need_token()
        asked = json.loads(self.body)
        repo = f"{asked['organization']}/{asked['name']}"
        if repo in self.hub.repositories:
            raise _Refused(409, message="You already created this model repo", repo=repo)
        if asked["organization"] != self.hub.may_write:
            raise _Refused(403, message="You don't have the rights to create a model under this namespace")
        self.hub.create(repo, private=asked.get("visibility") == "private")
        return {"url": f"{self.hub.endpoint}/{repo}"}, {}

    def _info(self, repo: str, revision: str = "main") -> tuple[Any, dict[str, str]]:
        found, commit = self._at(repo, revision)
        return {"id": repo, "sha": commit, "private": found.private, "siblings": [], "tags": []}, {}

    def _branch(self, repo: str, branch: str) -> tuple[Any, dict[str, str]]:
        found = self._writable(repo)
        if branch in found.refs:
            raise _Refused(409, message="Reference already exists")
        found.refs[branch] = found.refs["main"]
        return {}, {}

    def _tree(self, repo: str, revision: str) -> tuple[Any, dict[str, str]]:
        found, commit = self._at(repo, revision)
        listed = [self.hub.spoil(file.listed(path)) for path, file in sorted(found.commits[commit].items())]
        folders = (
            [{"type": "directory", "path": "onnx", "oid": "0" * 40}] if any("/" in f["path"] for f in listed) else []
        )
        rows, start = [*folders, *listed], int(self.query.get("cursor", ["0"])[0])
        page = rows[start : start + _PAGE]
        more = f"{self.hub.endpoint}{urlsplit(self.path).path}?recursive=True&cursor={start + _PAGE}"
        return page, {"Link": f'<{more}>; rel="next"'} if start + _PAGE < len(rows) else {}

    def _preupload(self, repo: str, revision: str) -> tuple[Any, dict[str, str]]:
        found = self._writable(repo)
        commit = self._at(repo, revision)[1]
        there = found.commits[commit]
        files = []
        for file in json.loads(self.body)["files"]:
            held = there.get(file["path"])
            oid = None if held is None else held.listed(file["path"]).get("lfs", {}).get("oid", blob_id(held.data))
            mode = "lfs" if file["path"].endswith(_LFS) else "regular"
            files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
        return {"files": files}, {}

    def _batch(self, repo: str) -> tuple[Any, dict[str, str]]:
        self._writable(repo)
        objects = []
        for wanted in json.loads(self.body)["objects"]:
            oid, size = wanted["oid"], wanted["size"]
            upload = {"href": f"{self.hub.endpoint}/store/{oid}?key=secret", "header": {}}
            actions = {"upload": upload, "verify": {"href": f"{self.hub.endpoint}/store/verify", "header": {}}}
            objects.append({"oid": oid, "size": size, **({} if oid in self.hub.store else {"actions": actions})})
        return {"objects": objects, "transfer": "basic"}, {}

    def _store(self, oid: str) -> tuple[Any, dict[str, str]]:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _Refused(400, message="the content is not what its name says")
        self.hub.store[oid] = self.body
        self.hub.received.append(oid)
        return {}, {}

    def _verify(self) -> tuple[Any, dict[str, str]]:
        asked = json.loads(self.body)
        if len(self.hub.store.get(asked["oid"], b"")) != asked["size"]:
            raise _Refused(404, message="no such object")
        return {}, {}

    def _commit(self, repo: str, revision: str) -> tuple[Any, dict[str, str]]:
        found = self._writable(repo)
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = next(line["value"] for line in lines if line["key"] == "header")
        head = self._at(repo, revision)[1]
        if header.get("parentCommit", head) != head:
            raise _Refused(412, message="A commit has happened since")
        files = dict(found.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = File(base64.b64decode(value["content"]), is_lfs=False)
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.store:
                    raise _Refused(400, message=f"LFS pointer pointed to a file that does not exist: {value['path']}")
                files[value["path"]] = File(self.hub.store[value["oid"]], is_lfs=True)
        oid = found.commit(revision, files, header["summary"])
        return {"commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}", "commitOid": oid}, {}

    def _discussions(self, repo: str) -> tuple[Any, dict[str, str]]:
        found = self._found(repo)
        return {"discussions": found.requests, "count": len(found.requests), "start": 0}, {}

    def _discuss(self, repo: str) -> tuple[Any, dict[str, str]]:
        found, asked = self._writable(repo), json.loads(self.body)
        number = len(found.requests) + 1
        found.requests.append(
            {
                "num": number,
                "title": asked["title"],
                "status": "draft",
                "author": {"name": OWNER},
                "createdAt": _DATE,
                "isPullRequest": asked["pullRequest"],
                "repo": {"name": repo, "type": "model"},
            }
        )
        found.refs[f"refs/pr/{number}"] = found.refs["main"]
        return {"num": number}, {}

    def _discussion(self, repo: str, number: str) -> tuple[Any, dict[str, str]]:
        request = self._found(repo).requests[int(number) - 1]
        return {**request, "changes": {"base": "refs/heads/main"}, "filesWithConflicts": [], "events": []}, {}

    def _status(self, repo: str, number: str) -> tuple[Any, dict[str, str]]:
        request = self._writable(repo).requests[int(number) - 1]
        request["status"] = json.loads(self.body)["status"]
        event = {"id": "1", "type": "status-change", "createdAt": _DATE, "author": {"name": OWNER}}
        return {"newStatus": {**event, "data": {"status": request["status"]}}}, {}

    def _yaml(self) -> tuple[Any, dict[str, str]]:
        """Some of what the hub demands of a card's front matter."""
        import yaml

        content = json.loads(self.body)["content"]
        found = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
        data = yaml.safe_load(found[1]) if found else None
        faults = [] if isinstance(data, dict) else ["no metadata"]
        if not faults and data.get("license") == "other" and not {"license_name", "license_link"} <= set(data):
            faults.append("license other needs license_name and license_link")
        if not faults and data.get("base_model_relation", "quantized") not in (
            "quantized",
            "finetune",
            "adapter",
            "merge",
        ):
            faults.append("base_model_relation")
        if faults:
            raise _Refused(400, message="; ".join(faults))
        return {"errors": [], "warnings": []}, {}

    def _resolve(self, repo: str, revision: str, path: str) -> tuple[Any, dict[str, str]]:
        found, commit = self._at(repo, revision)
        file = found.commits[commit].get(path)
        if file is None:
            raise _Refused(404, "EntryNotFound", "Entry not found")
        etag = hashlib.sha256(file.data).hexdigest() if file.is_lfs else blob_id(file.data)
        return file.data, {"ETag": f'"{etag}"', "X-Repo-Commit": commit}

    def _found(self, repo: str) -> Repository:
        if repo in self.hub.gated:
            raise _Refused(403, "GatedRepo", f"Access to model {repo} is restricted")
        if repo not in self.hub.repositories:
            raise _Refused(404, "RepoNotFound", "Repository not found")
        return self.hub.repositories[repo]

    def _at(self, repo: str, revision: str) -> tuple[Repository, str]:
        found = self._found(repo)
        commit = found.at(revision)
        if commit is None:
            raise _Refused(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        return found, commit

    def _writable(self, repo: str) -> Repository:
        self._need_token()
        found = self._found(repo)
        if repo.partition("/")[0] != self.hub.may_write:
            raise _Refused(403, message="You don't have write access")
        return found

    def _need_token(self) -> None:
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise _Refused(401, message="Invalid credentials in Authorization header")

    def _read(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        pieces = []
        while n_bytes := int(self.rfile.readline(), 16):
            pieces.append(self.rfile.read(n_bytes))
            self.rfile.readline()
        return b"".join(pieces)

    def _cut(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.close()

    def _send(self, status: int, value: Any, headers: Mapping[str, str]) -> None:
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        self.send_response(status)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


_REPO = r"([^/]+/[^/]+?)"
_MODELS = rf"/api/models/{_REPO}"
_ROUTES = (
    ("GET", r"/api/whoami-v2", "_whoami"),
    ("POST", r"/api/repos/create", "_create_repo"),
    ("POST", r"/api/validate-yaml", "_yaml"),
    ("GET", _MODELS, "_info"),
    ("GET", rf"{_MODELS}/revision/([^/]+)", "_info"),
    ("POST", rf"{_MODELS}/branch/([^/]+)", "_branch"),
    ("GET", rf"{_MODELS}/tree/([^/]+)", "_tree"),
    ("POST", rf"{_MODELS}/preupload/([^/]+)", "_preupload"),
    ("POST", rf"{_MODELS}/commit/([^/]+)", "_commit"),
    ("GET", rf"{_MODELS}/discussions", "_discussions"),
    ("POST", rf"{_MODELS}/discussions", "_discuss"),
    ("GET", rf"{_MODELS}/discussions/(\d+)", "_discussion"),
    ("POST", rf"{_MODELS}/discussions/(\d+)/status", "_status"),
    ("POST", rf"/{_REPO}\.git/info/lfs/objects/batch", "_batch"),
    ("PUT", r"/store/([0-9a-f]{64})", "_store"),
    ("POST", r"/store/verify", "_verify"),
    ("GET", rf"/{_REPO}/resolve/([^/]+)/(.+)", "_resolve"),
)


def blob_id(data: bytes) -> str:
    """The id that git gives a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()


@contextmanager
def serve_hub() -> Iterator[Hub]:
    """An empty hub, for as long as the context lasts."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
