"""Where a model comes from: settings file, current folder, bundled, a hub (a local server), its cache."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from lfm_convert.convert.errors import InputError, UsageError
from lfm_convert.convert.source import find_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
REPO = "LiquidAI/LFM2-Local"


def test_without_a_model_the_bundled_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    found = find_model(None)
    assert found.name == "LFM2-Tiny-MoE"
    assert "using the bundled LFM2-Tiny-MoE" in (found.note or "")


def test_current_folder_comes_before_the_bundled(tiny_moe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tiny_moe)
    assert find_model(None).folder.resolve() == tiny_moe.resolve()


def test_settings_come_first(tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lfm-convert.toml").write_text(f'model = "{tiny_moe}"')
    assert find_model(None).folder == tiny_moe


@pytest.mark.parametrize("text", ["model = 3", "modle = 'x'", "model ="])
def test_malformed_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "lfm-convert.toml").write_text(text)
    with pytest.raises(InputError, match=r"lfm-convert\.toml"):
        find_model(None)


def test_unknown_places(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        find_model(str(tmp_path / "nothing"))
    with pytest.raises(UsageError, match="no bundled model 'big': expected moe or dense"):
        find_model("bundled:big")
    (tmp_path / "x.gguf").touch()
    with pytest.raises(InputError, match="is a file"):
        find_model(str(tmp_path / "x.gguf"))


class _Hub(BaseHTTPRequestHandler):
    """The calls a snapshot download makes: the commit, the file list, and each file."""

    folder: Path

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        if path.startswith(f"/api/models/{REPO}/revision/") or path == f"/api/models/{REPO}":
            self._send(json.dumps({"id": REPO, "sha": COMMIT}).encode(), "application/json")
        elif path.startswith(f"/api/models/{REPO}/tree/"):
            sizes = {p.name: p.stat().st_size for p in sorted(self.folder.iterdir())} | {"evil.bin": 1}
            tree = [{"type": "file", "path": name, "size": size, "oid": "0" * 40} for name, size in sizes.items()]
            self._send(json.dumps(tree).encode(), "application/json")
        elif path.startswith(f"/{REPO}/resolve/"):
            self._send((self.folder / path.rpartition("/")[2]).read_bytes(), "application/octet-stream")
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


@pytest.fixture
def hub(tiny_moe: Path) -> Iterator[str]:
    handler = type("Handler", (_Hub,), {"folder": tiny_moe})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def _inspect(home: Path, endpoint: str, repo: str, *options: str) -> subprocess.CompletedProcess[str]:
    environment = {"HF_HOME": str(home), "HF_ENDPOINT": endpoint, "PATH": "/usr/bin:/bin", "HF_HUB_DISABLE_XET": "1"}
    command = [sys.executable, "-m", "lfm_convert", "plan", repo, "--target", "gguf", "--quant", "Q8_0", *options]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


def test_hub_then_offline_cache(hub: str, tmp_path: Path) -> None:
    first = _inspect(tmp_path, hub, REPO)
    assert first.returncode == 0, first.stderr
    assert "LFM2-Local-Q8_0.gguf" in first.stdout
    assert not list(tmp_path.rglob("evil.bin"))
    again = _inspect(tmp_path, "http://127.0.0.1:9", REPO, "--offline")
    assert again.stdout == first.stdout


def test_hub_failures(hub: str, tmp_path: Path) -> None:
    unknown = _inspect(tmp_path, hub, "LiquidAI/Nothing")
    assert (unknown.returncode, "the hub has no such repository" in unknown.stderr) == (8, True), unknown.stderr
    offline = _inspect(tmp_path, hub, REPO, "--offline")
    assert (offline.returncode, "it is not in the local cache" in offline.stderr) == (8, True), offline.stderr
    unreachable = _inspect(tmp_path, "http://127.0.0.1:9", REPO)
    assert unreachable.returncode == 8, unreachable.stderr
    assert unreachable.stderr.count("\n") == 1
