"""A recipe to begin with: for a checkpoint, the targets and quants that fit some classes of devices, with why."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from ..graph.errors import LfmConvertError, UsageError
from ..graph.graph import WeightGraph
from ..graph.units import format_size
from ..targets.plans import Plan
from ..targets.target import Target, get_target, target_names
from ..validate.budgets import Budgets, DeviceClass
from ..validate.memory import CONTEXT_TOKENS, plan_run_bytes

# What a newcomer may begin with, and will put the numbers of their own devices to. A phone of 6 GB leaves an app half of
# that at most; a browser takes no file of 2 GiB or more at once, and WebAssembly addresses 4 GiB.
DEVICES: Mapping[str, DeviceClass] = {
    each.name: each
    for each in (
        DeviceClass(name="phone", max_memory=2_000_000_000, targets=("gguf", "executorch", "coreml")),
        DeviceClass(name="browser", max_file_size=2_000_000_000, max_memory=4_000_000_000, targets=("onnx",)),
        DeviceClass(name="laptop", max_memory=8_000_000_000, targets=("gguf", "onnx")),
        DeviceClass(name="mac", max_memory=8_000_000_000, targets=("mlx", "gguf", "coreml")),
        DeviceClass(name="server", max_memory=24_000_000_000, targets=("compressed-tensors",)),
    )
}
_MOST_OTHERS = 6  # quants that a comment names


@dataclass(frozen=True, kw_only=True)
class _Fit:
    """A plan that is begun with, the classes that it fits, and the other plans that fit one of them."""

    plan: Plan
    devices: tuple[str, ...]
    others: tuple[Plan, ...]


def starter(graph: WeightGraph, *, model: str, revision: str | None = None, devices: Sequence[str] = ()) -> str:
    """The text of a commented recipe. `model` is the checkpoint as the recipe is to name it.

    Without devices every target that can say the model is in it, with its default quant.
    Raises: UsageError for a class that is not in `DEVICES`, and if nothing fits.
    """
    unknown = [name for name in devices if name not in DEVICES]
    if unknown:
        raise UsageError(f"--device {unknown[0]}: expected some of {', '.join(DEVICES)}, or none for every target")
    classes = [DEVICES[name] for name in dict.fromkeys(devices)]
    parts = [_head(graph, model, revision)]
    n_artifacts = 0
    for target in map(get_target, target_names()):
        meant = [device for device in classes if target.name in device.targets]
        if classes and not meant:
            continue
        for part, is_artifact in _artifacts(graph, target, meant):
            parts.append(part)
            n_artifacts += is_artifact
    if not n_artifacts:
        raise UsageError(f"{graph.name}: no quant of any target fits {', '.join(devices)}, as far as it can be planned")
    parts += [_device(device) for device in classes] or [_DEVICE_EXAMPLE]
    return "\n".join([*parts, _TAIL])


def _artifacts(graph: WeightGraph, target: Target, devices: Sequence[DeviceClass]) -> Iterator[tuple[str, bool]]:
    """Tables of one target, or a comment that says why it is left out; and whether it is a table."""
    try:
        plans = {policy.name: target.plan(graph, policy.name) for policy in target.policies}
    except LfmConvertError as error:
        yield f"# {target.name} is left out: {error}\n", False
        return
    fits: dict[str, list[str]] = {}
    for device in devices:
        chosen = _chosen(graph, target, plans, device)
        if chosen is None:
            least = min(plans.values(), key=lambda plan: plan.total_bytes)
            memory = format_size(plan_run_bytes(graph.config, least, CONTEXT_TOKENS))
            size = format_size(least.total_bytes)
            yield f"# {target.name} does not fit a {device.name}: {least.quant} is {size}, and takes {memory}.\n", False
        else:
            fits.setdefault(chosen, []).append(device.name)
    for quant, names in (fits or ({} if devices else {target.default_quant: []})).items():
        meant = [device for device in devices if device.name in names]
        others = [each for each in plans.values() if each.quant != quant and _fits_any(graph, each, meant)]
        fit = _Fit(plan=plans[quant], devices=tuple(names), others=tuple(sorted(others, key=lambda p: p.total_bytes)))
        yield _table(graph, target, fit), True


def _chosen(graph: WeightGraph, target: Target, plans: Mapping[str, Plan], device: DeviceClass) -> str | None:
    """The target's default if it fits, else the largest that does; None if none does."""
    fitting = {name: plan for name, plan in plans.items() if _fits_any(graph, plan, [device])}
    if target.default_quant in fitting:
        return target.default_quant
    return max(fitting, key=lambda name: fitting[name].total_bytes, default=None)


def _fits_any(graph: WeightGraph, plan: Plan, devices: Sequence[DeviceClass]) -> bool:
    """Whether a plan is within one of these classes; anything is if there are none."""
    return not devices or any(
        all(check.passed for check in Budgets(devices=[device]).check_plan(graph.config, plan)) for device in devices
    )


def _head(graph: WeightGraph, model: str, revision: str | None) -> str:
    lines = [
        f"# What is released of {graph.name}, {graph.n_parameters:,} parameters: `lfm-convert release --dry-run`, then",
        "# `lfm-convert release`. docs/recipe.md has every key.",
        f"model = {json.dumps(model, ensure_ascii=False)}",
        *([f"revision = {json.dumps(revision)}"] if revision else ['# revision = "main"  # of a hub id']),
        'out = "release"  # each target in a folder of its own below it',
    ]
    return "\n".join(lines) + "\n"


def _table(graph: WeightGraph, target: Target, fit: _Fit) -> str:
    memory = format_size(plan_run_bytes(graph.config, fit.plan, CONTEXT_TOKENS))
    lines = [
        f"# {target.title}",
        "[[artifacts]]",
        f'target = "{target.name}"',
        f'quants = ["{fit.plan.quant}"]  # {format_size(fit.plan.total_bytes)}; running it takes {memory}',
    ]
    if fit.others:
        named = [f"{each.quant} {format_size(each.total_bytes)}" for each in fit.others[:_MOST_OTHERS]]
        more = f" and {len(fit.others) - _MOST_OTHERS} more" if len(fit.others) > _MOST_OTHERS else ""
        lines.append(f"# also possible: {', '.join(named)}{more}")
    if fit.devices:
        lines.append(f"devices = {json.dumps(list(fit.devices))}")
    return "\n".join(lines) + "\n"


def _device(device: DeviceClass) -> str:
    limits = {name: getattr(device, name) for name in ("max_size", "max_file_size", "max_memory")}
    written = [f'{name} = "{format_size(value).replace(" ", "")}"' for name, value in limits.items() if value]
    lines = [
        "# Put the numbers of your own devices here.",
        f"[devices.{device.name}]",
        *written,
        f"context = {CONTEXT_TOKENS}  # tokens of a conversation",
        f"targets = {json.dumps(list(device.targets))}",
    ]
    return "\n".join(lines) + "\n"


_DEVICE_EXAMPLE = """\
# A class of devices; `devices = ["phone"]` in a table of artifacts holds them to it.
# [devices.phone]
# max_memory = "2GB"
"""
_TAIL = """\
[validation]
suite = "standard"  # or smoke, in a fraction of the time

# Lines of your own, beside the gates that every artifact must pass.
# [gates]
# max_kld = 0.1      # nats
# min_top1 = "90%"

[reports]
html = "{out}/report.html"
junit = "{out}/junit.xml"
"""
