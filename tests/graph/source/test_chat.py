"""Chat templates: rendered as transformers renders them; hostile ones refused in bounded time and memory."""

from __future__ import annotations

import time

import pytest
from lfm_convert.graph.source.chat import render_chat, render_chats
from support.bpe import BOS, CHAT_TEMPLATE
from support.refusals import refused

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Größe <1 & 'x'?"}]
TOOLS = [{"name": "find", "parameters": {"b": 1, "a": "ü<"}}]
EXPECTED = (
    "<|startoftext|><|im_start|>system\nBe brief.<|im_end|>\n"
    "<|im_start|>user\nGröße <1 & 'x'?<|im_end|>\n<|im_start|>assistant\n"
)


def test_a_conversation_is_ready_for_the_assistant() -> None:
    assert render_chat(CHAT_TEMPLATE, MESSAGES, special_tokens={"bos_token": BOS}) == EXPECTED


def test_conversations_share_one_process() -> None:
    assert render_chats(CHAT_TEMPLATE, [MESSAGES] * 50, special_tokens={"bos_token": BOS}) == [EXPECTED] * 50
    assert render_chats(CHAT_TEMPLATE, [], special_tokens={"bos_token": BOS}) == []


def test_tools_are_plain_json_and_the_date_is_pinned() -> None:
    text = render_chat(CHAT_TEMPLATE, MESSAGES, special_tokens={"bos_token": BOS}, tools=TOOLS)
    assert '[{"name": "find", "parameters": {"b": 1, "a": "ü<"}}]' in text
    assert "Today's date: 2026-01-01<|im_end|>" in text


@pytest.mark.peers
@pytest.mark.parametrize("tools", [None, TOOLS])
@pytest.mark.parametrize(
    "template",
    [
        CHAT_TEMPLATE.replace("strftime_now('%Y-%m-%d')", "'2026-01-01'"),
        "{% for m in messages %}\n  {% if loop.first %}{% continue %}{% endif %}\n  {{ m | tojson(indent=2) }}\n{% endfor %}\n",
        "{%- for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}\n{% endfor %}",
    ],
)
def test_text_equals_that_of_transformers(template: str, tools: list | None) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    theirs, _ = render_jinja_template(
        [MESSAGES], tools=tools, chat_template=template, add_generation_prompt=True, bos_token=BOS
    )
    assert render_chat(template, MESSAGES, special_tokens={"bos_token": BOS}, tools=tools) == theirs[0]


@pytest.mark.parametrize(
    ("template", "part"),
    [
        ("{{ ''.__class__.__mro__ }}", "SecurityError"),
        ("{{ ''.__class__.__mro__[1].__subclasses__() }}", "SecurityError"),
        ("{{ cycler.__init__.__globals__.os.popen('id').read() }}", "SecurityError"),
        ("{{ '{0.__class__.__init__.__globals__}'.format(messages) }}", "SecurityError"),
        ("{% set _ = messages.append(1) %}", "SecurityError"),
        ("{% include '/etc/passwd' %}", "no loader"),
        ("{% import 'os' as os %}", "no loader"),
        ("{% for %}", "TemplateSyntaxError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ nothing.at.all }}", "UndefinedError"),
        ("{{ raise_exception('roles must alternate') }}", "TemplateError: roles must alternate"),
        ("{% for i in range(10 ** 9) %}{% endfor %}", "OverflowError"),
        ("{{ 'x' * (20 * 1024 ** 2) }}", "writes more than 16777216 characters"),
        ("{% for i in range(99999) %}{{ 'x' * 999 }}{% endfor %}", "writes more than 16777216 characters"),
        ("{{ 'x' * 10 ** 11 }}", "needs more than 512 MiB"),
        ("{% set x = namespace(s='x') %}{% for i in range(99) %}{% set x.s = x.s ~ x.s %}{% endfor %}", "512 MiB"),
        ("{{ '%99999999999d' % 1 }}", "cannot be rendered"),
        ("{{ 'x'.__len__() }}" + "(" * 5000, "cannot be rendered"),
    ],
)
def test_hostile_templates_are_refused(template: str, part: str) -> None:
    with refused("chat template", part):
        render_chat(template, MESSAGES, special_tokens={"bos_token": BOS})


@pytest.mark.parametrize(
    "template",
    [
        "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{% for i in range(99999) %}{{ again() }}{% endfor %}{% endmacro %}{{ again() }}",
        "{{ 10 ** (10 ** 9) }}",
    ],
    ids=["loops", "macros", "power"],
)
def test_endless_templates_end(template: str) -> None:
    started = time.monotonic()
    with refused("chat template"):
        render_chat(template, MESSAGES, special_tokens={"bos_token": BOS}, seconds=1.0)
    assert time.monotonic() - started < 5
