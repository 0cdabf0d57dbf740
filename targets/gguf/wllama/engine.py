"""The process in which llama.cpp's WebAssembly build runs: requests as JSON, logits as bytes, over its pipes."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from .install import Installation

_PROGRAM = Path(__file__).with_name("engine.cjs")
_LAST_WORDS = 300


class EngineError(Exception):
    """What llama.cpp says of a request that it does not carry out."""


class Engine:
    """A process of `engine.cjs`, which ends with `close`, and by itself when this process ends."""

    def __init__(self, installed: Installation, *, threads: int) -> None:
        command = [*map(str, (installed.node, _PROGRAM, installed.package, threads, os.getpid()))]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (open as long as the process)
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._stderr)

    @property
    def process_id(self) -> int:
        return self._process.pid

    def ask(self, call: str, **options: Any) -> tuple[dict[str, Any], bytes]:
        """The answer to a request, and the bytes that go with it.

        Raises: EngineError if llama.cpp refuses, or the process has ended.
        """
        assert self._process.stdin is not None and self._process.stdout is not None
        header = b""
        with suppress(BrokenPipeError):
            self._process.stdin.write(json.dumps({"call": call, **options}).encode() + b"\n")
            self._process.stdin.flush()
            header = self._process.stdout.readline()
        if not header.endswith(b"\n"):
            raise EngineError(self._last_words())
        answer = json.loads(header)
        data = self._process.stdout.read(answer["bytes"])
        if len(data) != answer["bytes"]:
            raise EngineError(self._last_words())
        if "error" in answer:
            raise EngineError(answer["error"])
        return answer, data

    def close(self) -> None:
        """Ends the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            with suppress(BrokenPipeError):
                if pipe is not None:
                    pipe.close()
        self._stderr.close()

    def _last_words(self) -> str:
        """Why the process ended: its exit code, and the error that Node.js printed."""
        code = self._process.wait()
        self._stderr.seek(0)
        lines = self._stderr.read().decode("utf-8", "replace").splitlines()
        error = next((line.strip() for line in lines if "rror:" in line or "FATAL" in line), "")
        return f"its process ended with exit code {code}" + (f": {error[:_LAST_WORDS]}" if error else "")
