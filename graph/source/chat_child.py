"""The process that renders a chat template for `chat.py`: one JSON request on stdin, one reply on stdout.

Run as a script, so that it starts with jinja2 and the standard library only.
Source: transformers `utils/chat_template_utils.py` (filters, globals, the `generation` tag).
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import sys
from typing import Any

import jinja2
from jinja2.ext import Extension
from jinja2.nodes import Node
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

_SHOWN_CHARACTERS = 500
# What transformers gives each template, asked for or not.
_ALWAYS = {"documents": None, "add_generation_prompt": True}


class _Generation(Extension):
    """`{% generation %}` marks what the assistant wrote for training; rendering passes it through."""

    tags = {"generation"}  # noqa: RUF012  # jinja2 declares it so

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _RefusedError(jinja2.TemplateError):
    """What a template raises by `raise_exception`."""


class _LimitError(Exception):
    """A template that writes too much."""


def main() -> None:
    request = json.load(sys.stdin)
    _limit(request)
    try:
        reply: dict[str, Any] = {"texts": _render(request)}
    except MemoryError:
        reply = {"fault": f"it needs more than {request['memory_bytes'] >> 20} MiB"}
    except Exception as error:  # a template can raise anything
        reply = {"fault": _say(error)}
    json.dump(reply, sys.stdout)


def _say(error: Exception) -> str:
    named = {_RefusedError: "TemplateError", _LimitError: "ValueError"}
    kind = named.get(type(error), type(error).__name__)
    return f"{kind}: {error}"[:_SHOWN_CHARACTERS]


def _limit(request: dict[str, Any]) -> None:
    with contextlib.suppress(ImportError):  # Windows has no rlimits; the parent's clock still counts
        import resource

        seconds = math.ceil(request["seconds"])
        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        with contextlib.suppress(ValueError, OSError):  # macOS refuses limits on address space
            resource.setrlimit(resource.RLIMIT_AS, (request["memory_bytes"],) * 2)


def _render(request: dict[str, Any]) -> list[str | dict[str, Any]]:
    """Each conversation as text, or as the reason why the template refuses it or cannot work with it."""
    template = _environment(request["date"]).from_string(request["template"])
    found: list[str | dict[str, Any]] = []
    room = request["characters"]
    for messages in request["conversations"]:
        variables = {**request["variables"], "messages": messages, **_ALWAYS}
        pieces = []
        try:
            for piece in template.generate(variables):
                pieces.append(piece)
                room -= len(piece)
                if room < 0:
                    raise _LimitError(f"it writes more than {request['characters']} characters")
            found.append("".join(pieces))
        except (_LimitError, jinja2.exceptions.SecurityError, MemoryError, RecursionError):
            raise  # of the template, whatever the conversation
        except Exception as error:  # one that this conversation makes, such as a division by what it has none of
            found.append({"reason": _say(error), "is_stated": isinstance(error, _RefusedError)})
    return found


def _environment(date: str) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", _Generation]
    )
    now = datetime.datetime.fromisoformat(date)
    environment.filters["tojson"] = _tojson
    environment.globals.update(raise_exception=_refuse, strftime_now=now.strftime)
    return environment


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Plain JSON; jinja2's own filter escapes for HTML."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _refuse(message: str) -> None:
    raise _RefusedError(message)


if __name__ == "__main__":
    main()
