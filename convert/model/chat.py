"""Chat templates: programs that arrive with a checkpoint, rendered without trusting them.

A template runs in jinja2's immutable sandbox, and that in a process of its own with limits on time,
memory and output: the sandbox keeps a template from the machine, but not from looping forever.
"""

from __future__ import annotations

import datetime
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError

# Templates print the date; parity needs the same ids every day.
PINNED_DATE = datetime.date(2026, 1, 1)
MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 512 << 20
MAX_OUTPUT_CHARACTERS = 16 << 20

_CHILD = Path(__file__).with_name("chat_child.py")

Message = Mapping[str, Any]


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    bos_token: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    seconds: float = MAX_SECONDS,
) -> str:
    """One conversation as the template writes it, ready for the assistant's turn; see `render_chats`."""
    return render_chats(template, [messages], bos_token=bos_token, tools=tools, seconds=seconds)[0]


def render_chats(
    template: str,
    conversations: Sequence[Sequence[Message]],
    *,
    bos_token: str,
    tools: Sequence[Mapping[str, Any]] | None = None,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Conversations as the template writes them; `strftime_now` gives one pinned date.

    All share one process, so that many cost little more than one.
    Raises: InputError if the template is malformed, reaches outside the sandbox, or exceeds a limit.
    """
    request = {
        "template": template,
        "variables": {"bos_token": bos_token, "tools": list(tools) if tools else None},
        "conversations": [list(messages) for messages in conversations],
        "date": PINNED_DATE.isoformat(),
        "seconds": seconds,
        "memory_bytes": MAX_MEMORY_BYTES,
        "characters": MAX_OUTPUT_CHARACTERS,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-P", str(_CHILD)],
            input=json.dumps(request).encode(),
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"chat template did not finish within {seconds:g} seconds") from None
    if done.returncode != 0:
        raise InputError(
            f"chat template ended its process with status {done.returncode}: it exceeds {seconds:g} seconds "
            f"or {MAX_MEMORY_BYTES >> 20} MiB"
        )
    reply = json.loads(done.stdout)
    if "fault" in reply:
        raise InputError(f"chat template cannot be rendered: {reply['fault']}")
    return list(reply["texts"])
