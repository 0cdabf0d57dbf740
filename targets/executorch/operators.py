"""Operators that an ExecuTorch may not have: refused in a sentence, where the runtime itself has an error number."""

from __future__ import annotations

from collections.abc import Collection
from importlib.metadata import version

from ...graph.errors import BackendError
from .fused import MINIMUM_RUNTIME, OPERATOR
from .reader import Program

# Which release an operator came with, of those that are newer than the oldest that runs our files otherwise.
_SINCE = {OPERATOR: MINIMUM_RUNTIME}
_CURE = 'pip install "lfm-convert[executorch]"'


def refuse_old_executorch(installed: str) -> None:
    """Raises BackendError if the installed executorch cannot lower `--et-moe moe_ffn`."""
    if _release(installed) < _release(MINIMUM_RUNTIME):
        raise BackendError(
            f"--et-moe moe_ffn: {OPERATOR} is in executorch {MINIMUM_RUNTIME} and newer, {installed} is installed: {_CURE}"
        )


def refuse_missing_operators(program: Program, available: Collection[str]) -> None:
    """Raises BackendError naming every operator that a program calls and the runtime does not have."""
    called = {(each.name, each.overload) for plan in program.content.execution_plan for each in plan.operators}
    missing = sorted(name for name, overload in called if f"{name}.{overload}".rstrip(".") not in available)
    if missing:
        named = [f"{name} (executorch {_SINCE[name]} and newer)" if name in _SINCE else name for name in missing]
        raise BackendError(
            f"{program.path}: calls {', '.join(named)}, which ExecuTorch {version('executorch')} does not have: {_CURE}"
        )


def _release(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in text.split("+")[0].split(".")[:2])
