"""A model hub on this machine: the calls a listing and a snapshot download make."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class _Hub(BaseHTTPRequestHandler):
    """The commit, the file list, and each file."""

    folder: Path
    repo: str

    def do_GET(self) -> None:
        path = unquote(self.path.split("?")[0])
        if path.startswith(f"/api/models/{self.repo}/revision/") or path == f"/api/models/{self.repo}":
            self._send(json.dumps({"id": self.repo, "sha": COMMIT}).encode(), "application/json")
        elif path.startswith(f"/api/models/{self.repo}/tree/"):
            files = (p for p in sorted(self.folder.rglob("*")) if p.is_file())
            sizes = {p.relative_to(self.folder).as_posix(): p.stat().st_size for p in files} | {"evil.bin": 1}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode(), "application/json")
        elif path.startswith(f"/{self.repo}/resolve/"):
            name = path.removeprefix(f"/{self.repo}/resolve/").partition("/")[2]
            self._send((self.folder / name).read_bytes(), "application/octet-stream")
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    do_HEAD = do_GET

    def _send(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        return


@contextmanager
def serve(folder: Path, repo: str) -> Iterator[str]:
    """The endpoint of a hub whose one repository has the files of `folder`, and one more that nobody wants."""
    handler = type("Handler", (_Hub,), {"folder": folder, "repo": repo})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def environment(home: Path, endpoint: str) -> dict[str, str]:
    """What a process needs to use that hub, with a cache of its own."""
    kept = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    return kept | {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin", "HF_HUB_DISABLE_XET": "1"}
