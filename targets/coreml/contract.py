"""Whether packages are of our interface: what their functions take and give, and that one follows the other."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

from ...graph.errors import InputError
from .evaluator.package import shown
from .evaluator.program import Function, Named
from .interface import CONV_IN, CONV_OUT, DECODE, HIDDEN_IN, HIDDEN_OUT, IDS, LOGITS, N_TOKENS, POSITION, PREFILL

Functions = Mapping[str, Function]
# Sizes and types of which any will do.
_ANY = {"vocabulary": r"\d+", "hidden": r"\d+", "float": "fp(?:16|32)"}


def check_interface(path: Path, functions: Functions) -> None:
    """Raises: InputError, in one sentence, for functions that are not those of `model`."""
    if set(functions) != {DECODE, PREFILL}:
        raise InputError(
            f"{path}: its functions are {shown(', '.join(functions))}: expected {DECODE} and {PREFILL}, as ours have"
        )
    for name, function in functions.items():
        if fault := _fault(function, is_prefill=name == PREFILL):
            raise InputError(f"{path}: {name} {fault}")
    if _kinds(functions[DECODE].states) != _kinds(functions[PREFILL].states):
        raise InputError(f"{path}: its functions do not share their states")


def check_chain(packages: Sequence[tuple[Path, Functions]]) -> None:
    """Raises: InputError for packages that do not lead from ids to logits, each taking what the one before it gives."""
    (first, begins), (last, ends) = packages[0], packages[-1]
    if IDS not in _kinds(begins[DECODE].inputs):
        raise InputError(f"{first}: takes {HIDDEN_IN} of a package before it: expected {IDS}, which the first takes")
    if LOGITS not in _kinds(ends[DECODE].outputs):
        raise InputError(f"{last}: gives {HIDDEN_OUT} to a package after it: expected {LOGITS}, which the last gives")
    for (_, before), (path, functions) in pairwise(packages):
        for name, function in functions.items():
            given, taken = _kinds(before[name].outputs).get(HIDDEN_OUT), _kinds(function.inputs).get(HIDDEN_IN)
            if given != taken or given is None:
                raise InputError(
                    f"{path}: {name} takes {HIDDEN_IN} as {taken or 'nothing'}: expected {given or 'nothing'}, as the "
                    "package before it gives"
                )


def shapes_of(values: Sequence[Named]) -> dict[str, tuple[int, ...]]:
    """0 for a size that is not fixed."""
    return {each.name: tuple(size or 0 for size in each.type.shape or ()) for each in values}


def _kinds(values: Sequence[Named]) -> dict[str, str]:
    return {each.name: str(each.type) for each in values}


def _fault(function: Function, *, is_prefill: bool) -> str | None:
    """What a function has otherwise than the interface says."""
    inputs, outputs = _kinds(function.inputs), _kinds(function.outputs)
    source, result = HIDDEN_IN if HIDDEN_IN in inputs else IDS, HIDDEN_OUT if HIDDEN_OUT in outputs else LOGITS
    n = shapes_of(function.inputs).get(source, ())[1:2] if is_prefill else (1,)
    n_tokens = n[0] if n else 0
    taken = {source: _stream(source, n_tokens), POSITION: "int32 [1]"} | ({N_TOKENS: "int32 [1]"} if is_prefill else {})
    for name, kind in taken.items():
        if not _is_of(inputs.get(name), kind) or n_tokens < 1:
            return f"takes {name} as {inputs.get(name, 'nothing')}: expected {kind}"
    if unknown := set(inputs) - set(taken) - {CONV_IN}:
        return f"takes {shown(', '.join(sorted(unknown)))}, of which it is not known what to give"
    if inputs.get(CONV_IN) != outputs.get(CONV_OUT) or 0 in shapes_of(function.inputs).get(CONV_IN, (1,)):
        return f"takes {CONV_IN} {inputs.get(CONV_IN)} and gives {CONV_OUT} {outputs.get(CONV_OUT)}"
    if not _is_of(outputs.get(result), _stream(result, n_tokens)):
        return f"gives {result} as {outputs.get(result, 'nothing')}: expected {_stream(result, n_tokens)}"
    return None


def _stream(name: str, n: int) -> str:
    """What flows through a function of n tokens, at either end."""
    return {IDS: f"int32 [1, {n}]", LOGITS: f"fp32 [1, {n}, vocabulary]"}.get(name, f"float [1, {n}, hidden]")


def _is_of(found: str | None, expected: str) -> bool:
    pattern = re.escape(expected)
    for word, any_ in _ANY.items():
        pattern = pattern.replace(word, any_)
    return found is not None and re.fullmatch(pattern, found) is not None
