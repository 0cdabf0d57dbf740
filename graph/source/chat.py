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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..json_text import parse_json

# Templates print the date; parity needs the same ids every day.
PINNED_DATE = datetime.date(2026, 1, 1)
MAX_SECONDS = 10.0
MAX_MEMORY_BYTES = 512 << 20
MAX_OUTPUT_CHARACTERS = 16 << 20

_CHILD = Path(__file__).with_name("chat_child.py")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Refusal:
    """Why a template writes no text for one conversation. `is_stated` says that the template itself says so, by
    `raise_exception`; else the conversation lacks something that the template takes for granted.
    """

    reason: str
    is_stated: bool


def render_chat(
    template: str,
    messages: Sequence[Message],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    seconds: float = MAX_SECONDS,
) -> str:
    """One conversation as the template writes it, ready for the assistant's turn; see `render_chats`."""
    return render_chats(template, [messages], special_tokens=special_tokens, tools=tools, seconds=seconds)[0]


def render_chats(
    template: str,
    conversations: Sequence[Sequence[Message]],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    seconds: float = MAX_SECONDS,
) -> list[str]:
    """Conversations as the template writes them; see `try_chats`.

    Raises: InputError as `try_chats`, and if the template refuses one of them.
    """
    found = try_chats(template, conversations, special_tokens=special_tokens, tools=tools, seconds=seconds)
    for each in found:
        if isinstance(each, Refusal):
            raise InputError(f"chat template cannot be rendered: {each.reason}")
    return [each for each in found if isinstance(each, str)]


def try_chats(
    template: str,
    conversations: Sequence[Sequence[Message]],
    *,
    special_tokens: Mapping[str, str],
    tools: Sequence[Mapping[str, Any]] | None = None,
    seconds: float = MAX_SECONDS,
) -> list[str | Refusal]:
    """Conversations as the template writes them, or why it does not; `strftime_now` gives one pinned date.

    `special_tokens` are what the template knows by names such as `bos_token`. All conversations share one process,
    so that many cost little more than one.
    Raises: InputError if the template is malformed, reaches outside the sandbox, or exceeds a limit.
    """
    request = {
        "template": template,
        "variables": {**special_tokens, "tools": list(tools) if tools else None},
        "conversations": [list(messages) for messages in conversations],
        "date": PINNED_DATE.isoformat(),
        "seconds": seconds,
        "memory_bytes": MAX_MEMORY_BYTES,
        "characters": MAX_OUTPUT_CHARACTERS,
    }
    reply = _ask(request, seconds)
    if "fault" in reply:
        raise InputError(f"chat template cannot be rendered: {reply['fault']}")
    return [each if isinstance(each, str) else Refusal(**each) for each in reply["texts"]]


def _ask(request: Mapping[str, Any], seconds: float) -> dict[str, Any]:
    """The reply of a process of its own."""
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
    try:
        reply: dict[str, Any] = parse_json(done.stdout)
    except ValueError as error:  # a template can write half a surrogate pair
        raise InputError(f"chat template cannot be rendered: {error}") from None
    return reply
