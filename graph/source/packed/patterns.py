"""Patterns of module names in a config. It comes from outside: none may keep its reader busy for longer than names are long."""

from __future__ import annotations

import re

from ...errors import InputError

_LONGEST = 500
# Each repetition may begin at every mark of a name, so that the work grows with that power of its length.
_REPETITIONS = 4
_APART = re.compile(r"\\.|\[\^?\]?(?:\\.|[^\]\\])*\]", re.DOTALL)  # escapes and sets: what is in them repeats nothing
_REPEATED = re.compile(r"[*+]|\{\d*,\d*\}")
_REPEATED_GROUP = re.compile(r"\)(?:[*+]|\{)")


def fits(pattern: str, module: str) -> bool:
    """Whether a module's name begins as a pattern says; of one that is no pattern, none does.

    Raises: InputError for a pattern that could take for ever.
    """
    bare = _APART.sub("x", pattern)
    if len(pattern) > _LONGEST or len(_REPEATED.findall(bare)) > _REPETITIONS or _REPEATED_GROUP.search(bare):
        raise InputError(
            f"config.json: the quantization_config has the pattern '{pattern:.60}', which repeats groups, or too much: "
            f"expected at most {_REPETITIONS} repetitions of single marks, and {_LONGEST} marks"
        )
    try:
        return re.match(pattern, module) is not None
    except (re.error, RecursionError, OverflowError):
        return False
