"""Draws short made-up dialogues in eight languages: questions with one right answer, small chats and tool calls.

An exchange is one question and its reply; a dialogue is one to three exchanges, with or without a system message.
Every draw comes from the `random.Random` handed in, so one seed gives one corpus.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from random import Random
from typing import Any

from .language import Form, Language
from .languages import LANGUAGES

Message = dict[str, str]


@dataclass(frozen=True)
class Exchange:
    """A question, its full reply, and the bare value that a "one word only" system message asks for."""

    ask: str
    reply: str
    value: str


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """Chat messages, and the tools (JSON schema objects) that the system message lists, if any."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


def _fill(rng: Random, form: Form, value: str, **fields: object) -> Exchange:
    return Exchange(rng.choice(form.asks).format(**fields), form.reply.format(**fields), value)


def _arithmetic(rng: Random, language: Language) -> Exchange:
    a, b = rng.randint(0, 12), rng.randint(0, 12)
    if rng.random() < 0.6:
        return _fill(rng, language.plus, str(a + b), a=a, b=b, c=a + b)
    a, b = max(a, b), min(a, b)
    return _fill(rng, language.minus, str(a - b), a=a, b=b, c=a - b)


def _capital(rng: Random, language: Language) -> Exchange:
    country, city = rng.choice(language.capitals)
    return _fill(rng, language.capital, city, x=country, y=city)


def _next_day(rng: Random, language: Language) -> Exchange:
    day = rng.randrange(7)
    after = language.days[(day + 1) % 7]
    return _fill(rng, language.next_day, after, x=language.days[day], y=after)


def _opposite(rng: Random, language: Language) -> Exchange:
    x, y = rng.sample(rng.choice(language.opposites), 2)
    return _fill(rng, language.opposite, y, x=x, y=y)


def _colour(rng: Random, language: Language) -> Exchange:
    return Exchange(*rng.choice(language.colours))


def _greeting(rng: Random, language: Language) -> Exchange:
    ask, reply = rng.choice(language.greetings)
    return Exchange(ask, reply, reply)


def _count(rng: Random, language: Language) -> Exchange:
    first = rng.randint(1, 12)
    last = first + rng.randint(2, 8)
    numbers = ", ".join(str(n) for n in range(first, last + 1))
    return Exchange(rng.choice(language.count).format(a=first, b=last), numbers, numbers)


def _repeat(rng: Random, language: Language) -> Exchange:
    pool = language.words + language.days + language.names
    words = " ".join(rng.sample(pool, rng.randint(1, 4)))
    return Exchange(rng.choice(language.repeat).format(x=words), words, words)


def _translate(rng: Random, language: Language) -> Exchange:
    code, name = rng.choice(list(language.targets.items()))
    index = rng.randrange(len(language.words))
    target = LANGUAGES[code].words[index]
    return Exchange(language.translate.format(x=language.words[index], y=name), target, target)


# Skill -> weight.  Those with many answers to learn get more draws than those with a handful.
_SKILLS: dict[Callable[[Random, Language], Exchange], int] = {
    _arithmetic: 6,
    _capital: 4,
    _next_day: 2,
    _opposite: 2,
    _colour: 1,
    _greeting: 2,
    _count: 2,
    _repeat: 3,
    _translate: 5,
}


def _chat(rng: Random, language: Language) -> Dialogue:
    """One to three independent exchanges; under the terse system message every reply is the bare value."""
    skills = rng.choices(list(_SKILLS), weights=list(_SKILLS.values()), k=rng.choice((1, 1, 1, 2, 2, 3)))
    system = rng.choice((None, rng.choice(language.systems), language.terse))
    exchanges = [skill(rng, language) for skill in skills]
    terse = system == language.terse
    turns = [(each.ask, each.value if terse else each.reply) for each in exchanges]
    return Dialogue(messages=_messages(system, turns))


def _named_chat(rng: Random, language: Language) -> Dialogue:
    """A chat that must carry a name over the turns in between."""
    name = rng.choice(language.names)
    between = [rng.choice((_arithmetic, _capital, _colour, _greeting))(rng, language) for _ in range(rng.randint(0, 1))]
    exchanges = [
        _fill(rng, language.introduce, name, x=name),
        *between,
        _fill(rng, language.recall, name, x=name),
    ]
    system = rng.choice((None, rng.choice(language.systems)))
    return Dialogue(messages=_messages(system, [(each.ask, each.reply) for each in exchanges]))


def _tool(name: str, description: str, **types: str) -> dict[str, Any]:
    properties = {key: {"type": kind} for key, kind in types.items()}
    return {"name": name, "description": description, "parameters": {"type": "object", "properties": properties}}


_WEATHER = _tool("get_weather", "Weather of a city", city="string")
_TIME = _tool("get_time", "Local time of a city", city="string")
_MULTIPLY = _tool("multiply", "Product of two numbers", a="integer", b="integer")
_TOOLS = (_WEATHER, _TIME, _MULTIPLY)
_TOOL_WEIGHTS = (3, 3, 1)


def _tool_use(rng: Random, language: Language) -> tuple[dict[str, Any], str, str, str, str]:
    """Return (tool, question, call, result, reply) of one use."""
    kind = rng.choices(_TOOLS, weights=_TOOL_WEIGHTS)[0]
    if kind is _MULTIPLY:
        a, b = rng.randint(11, 99), rng.randint(2, 99)
        return kind, f"{a} × {b} = ?", f"multiply(a={a}, b={b})", f'{{"product": {a * b}}}', f"{a} × {b} = {a * b}"
    city = rng.choice([city for _, city in language.capitals])
    if kind is _WEATHER:
        form, value, result = language.weather, str(rng.randint(-5, 35)), '{{"celsius": {}}}'
    else:
        form, value, result = language.clock, f"{rng.randint(0, 23)}:{rng.randint(0, 59):02}", '{{"time": "{}"}}'
    filled = _fill(rng, form, value, x=city, y=value)
    return kind, filled.ask, f"{kind['name']}(city='{city}')", result.format(value), filled.reply


def _tool_chat(rng: Random, language: Language) -> Dialogue:
    """A question, the tool call, its result and the reply; at times a plain exchange follows, without a call."""
    kind, ask, call, result, reply = _tool_use(rng, language)
    others = [tool for tool in _TOOLS if tool is not kind]
    tools = [kind, *rng.sample(others, rng.choice((0, 0, 1)))]
    rng.shuffle(tools)
    messages = [
        *_messages(rng.choice((None, language.systems[0])), []),
        {"role": "user", "content": ask},
        {"role": "assistant", "content": f"<|tool_call_start|>[{call}]<|tool_call_end|>"},
        {"role": "tool", "content": result},
        {"role": "assistant", "content": reply},
    ]
    if rng.random() < 0.2:
        plain = rng.choice((_capital, _colour, _greeting))(rng, language)
        messages += _messages(None, [(plain.ask, plain.reply)])
    return Dialogue(messages=tuple(messages), tools=tuple(tools))


def _messages(system: str | None, turns: list[tuple[str, str]]) -> tuple[Message, ...]:
    messages = [{"role": "system", "content": system}] if system else []
    for ask, reply in turns:
        messages += [{"role": "user", "content": ask}, {"role": "assistant", "content": reply}]
    return tuple(messages)


def draw(rng: Random) -> Dialogue:
    """Draw one dialogue; English comes as often as three other languages together."""
    languages = list(LANGUAGES.values())
    language = rng.choices(languages, weights=[3 if each.code == "en" else 1 for each in languages])[0]
    make = rng.choices((_chat, _named_chat, _tool_chat), weights=(7, 1, 2))[0]
    return make(rng, language)
