"""A server on this machine that speaks S3, for tests of what goes through s3fs."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

from lfm_convert.graph.source.urls import open_url

BUCKET = "s3://releases"
_SETTINGS = {
    "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}  # fmt: skip


@contextmanager
def local_s3() -> Iterator[str]:
    """An empty bucket's URL; the environment, which processes that are started meanwhile inherit, leads to its server."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    try:
        with patch.dict(os.environ, {**_SETTINGS, "AWS_ENDPOINT_URL": f"http://{host}:{port}"}):
            bucket = open_url(BUCKET)
            bucket.fs.mkdir(bucket.path)
            yield BUCKET
    finally:
        server.stop()


def stored(url: str, *, hidden: bool = False) -> dict[str, str]:
    """sha256 of every file below a URL by path, without what a release keeps for itself."""
    remote = open_url(url)
    root = remote.path.rstrip("/") + "/"
    names = [path.removeprefix(root) for path in remote.fs.find(remote.path)]
    return {
        name: hashlib.sha256(remote.fs.cat_file(root + name)).hexdigest()
        for name in sorted(names)
        if hidden or not any(part.startswith(".") for part in name.split("/"))
    }


def upload(folder: Path, url: str) -> None:
    """Copies the files of a folder to a URL."""
    remote = open_url(url)
    for path in folder.iterdir():
        remote.fs.put_file(str(path), (remote / path.name).path)
