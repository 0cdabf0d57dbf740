"""What each weight of a graph is stored as: chosen for what servers run as one product, not for each weight alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ...graph.dtypes import DType
from ...graph.families.places import without_number
from ...graph.graph import WeightGraph
from ...graph.roles import EXPERTS
from ...quantize.encoding import get_encoding
from ...quantize.policies.compressed_tensors import ALIKE
from ...quantize.policy import Choice, Policy
from ..kept import KeptWeight, kept_weights
from .layout import Run, module_path, stored_runs

# The policy for weights that come in a type.
PolicyOf = Callable[[DType], Policy]


@dataclass(frozen=True)
class Stored:
    """One weight on its way into the folder. `parameter` has "{e}" where an expert's number stands."""

    parameter: str
    weight: KeptWeight
    choice: Choice
    runs: tuple[Run, ...]

    @property
    def name(self) -> str:
        """Without the numbers of experts."""
        return without_number(self.parameter)

    @property
    def module(self) -> str:
        return module_path(self.parameter)


def stored_weights(graph: WeightGraph, policy_of: PolicyOf) -> list[Stored]:
    """Every weight of a graph, in model order, by the policy for the type that it comes in."""
    choices = _alike({w: policy_of(w.view.dtype).choose(w) for w in kept_weights(graph)}, policy_of)
    found = []
    for weight, choice in choices.items():
        parameter = graph.config.family.tensor_name(weight.role, weight.layer)
        runs = stored_runs(parameter, weight.role.trait, weight.shape, choice.encoding)
        found.append(Stored(parameter, weight, choice, runs))
    return found


def _alike(choices: Mapping[KeptWeight, Choice], policy_of: PolicyOf) -> dict[KeptWeight, Choice]:
    """The same, where the weights that servers run as one have what all of them can have.

    Readers take all experts of a model to be stored alike, other weights those of a layer.
    """
    found = dict(choices)
    for roles in ALIKE:
        together: dict[int | None, list[KeptWeight]] = {}
        for weight in (weight for weight in choices if weight.role in roles):
            together.setdefault(None if roles is EXPERTS else weight.layer, []).append(weight)
        for weights in together.values():
            depths = {weight: _steps(weight, policy_of).index(choices[weight].encoding.name) for weight in weights}
            last = max(depths, key=lambda weight: depths[weight])
            reason = f"it is run as one with '{last.view.name}': {choices[last].reason}"
            for weight in (weight for weight in weights if depths[weight] < depths[last]):
                encoding = get_encoding(_steps(weight, policy_of)[depths[last]])
                found[weight] = replace(choices[weight], encoding=encoding, reason=reason)
    return found


def _steps(weight: KeptWeight, policy_of: PolicyOf) -> list[str]:
    """The encoding that a policy wants for a weight, and those that take its place one after the other."""
    policy = policy_of(weight.view.dtype)
    steps = [policy.choose(weight).wanted]
    while steps[-1] in policy.fallbacks:
        steps.append(policy.fallbacks[steps[-1]])
    return steps
