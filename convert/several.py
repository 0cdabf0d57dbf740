"""Several targets in one command: which quants and options are whose, and one run of the checkpoint for all of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..graph.errors import UsageError
from ..graph.graph import WeightGraph
from ..graph.progress import SILENT
from ..quantize.allotment.wanted import BITS, check_tuned, named, read_wanted
from ..targets.options import flag, options_of
from ..targets.stream import Profile
from ..targets.target import get_target, target_names
from ..validate.budgets import UNLIMITED, Budgets
from . import pipeline
from .pipeline import Converted
from .writing import already_there


@dataclass(frozen=True, kw_only=True)
class Share:
    """What of a command is one target's; no quants mean its default."""

    target: str
    quants: tuple[str, ...] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)

    def budgets(self, given: Budgets) -> Budgets:
        """The same budgets, with the context that the artifacts are written for, where the target fixes it."""
        return replace(given, context=self.options.get("context", given.context))


def shares(
    targets: Sequence[str],
    quant: Sequence[str] | None = None,
    options: Mapping[str, Any] | None = None,
    *,
    max_bytes: int | None = None,
    tune: Collection[str] = (),
) -> tuple[Share, ...]:
    """Hands quants and options to the targets: a quant to every target that has it, an option likewise.

    `targets` and `quant` are names or lists of them with commas; `all` is every one, `auto` fills `max_bytes`, and all are
    named as tuned whose bits are to be.
    Raises: UsageError for a target, quant or option that there is not, for a target that quants are named for, but none
    of its own, and for statistics that nothing is tuned by.
    """
    own = tuple(get_target(name).name for name in _listed(targets) if name != "all")
    chosen = target_names() if "all" in _listed(targets) else own
    check_tuned(tune)
    bits = BITS in tune
    quants = None if quant is None else [named(name, max_bytes=max_bytes, bits=bits) for name in _listed(quant)]
    if (options or {}).get("statistics") and not tune and not any(map(read_wanted, quants or ())):
        raise UsageError("--statistics: tunes nothing without --tune, or --quant auto with a size")
    if len(chosen) == 1:  # which says by itself what it does not have
        return (Share(target=chosen[0], quants=_named(quants, chosen[0], bits=bits), options=dict(options or {})),)
    owners = {name: [target for target in chosen if _has(target, name)] for name in quants or ()}
    if (nobodys := next((name for name, found in owners.items() if not found), None)) is not None:
        raise UsageError(f"quant '{nobodys}' is none of {', '.join(chosen)}; 'lfm-convert targets' lists them")
    known = {target: options_of(get_target(target)) for target in chosen}
    for name in options or {}:
        if not any(name in found for found in known.values()):
            raise UsageError(f"none of {', '.join(chosen)} has an option {flag(name)}")
    return tuple(
        Share(
            target=target,
            quants=_named(
                None if quants is None else [name for name in quants if target in owners[name]], target, bits=bits
            ),
            options={name: value for name, value in (options or {}).items() if name in known[target]},
        )
        for target in chosen
    )


def _listed(values: Sequence[str]) -> list[str]:
    """Names in lists with commas, once each."""
    return list(dict.fromkeys(name.strip() for value in values for name in value.split(",")))


def _named(quants: Sequence[str] | None, target: str, *, bits: bool) -> tuple[str, ...] | None:
    if quants is None and bits:
        return (named(get_target(target).default_quant, bits=True),)
    if quants is not None and not quants:
        own = ", ".join(policy.name for policy in get_target(target).policies)
        raise UsageError(
            f"none of the quants is one of {target}'s, which has {own}; without --quant each target writes its default"
        )
    return None if quants is None else tuple(quants)


def _has(target: str, quant: str) -> bool:
    if quant == "all":
        return True
    try:
        get_target(target).named(quant)
    except UsageError:
        return False
    return True


def convert_several(
    graph: WeightGraph,
    wanted: Sequence[Share],
    *,
    out: Path | None = None,
    comparison: Mapping[str, Any] | None = None,
    budgets: Budgets = UNLIMITED,
    **settings: Any,
) -> Converted:
    """Writes and compares the artifacts of each target in turn, each target in one of the `folders`.

    `settings` are those of `pipeline.convert`. The checkpoint is hashed once, and runs once for all comparisons. Files
    of any target that are in the way, and plans over a budget, are refused before the first is written.
    Raises: as `pipeline.convert`; what was published before stays.
    """
    places = folders(graph, wanted, out)
    if len(wanted) > 1:
        _refuse(graph, wanted, places, budgets, settings)
    done: list[Converted] = []
    with TemporaryDirectory(prefix="lfm-reference-") if len(wanted) > 1 else nullcontext() as kept:
        compared = dict(comparison or {})
        if kept is not None and compared.get("reference_cache") is None:
            compared["reference_cache"] = Path(kept)
        for share, place in zip(wanted, places, strict=True):
            done.append(
                pipeline.convert(
                    graph,
                    target=share.target,
                    quant=share.quants,
                    options=share.options,
                    out=place,
                    budgets=share.budgets(budgets),
                    comparison=compared,
                    source_hashes=pipeline.recorded_hashes(done[-1].folder) if done else None,
                    **settings,
                )
            )
    return done[0] if len(done) == 1 else _together(out or Path(), done)


def folders(graph: WeightGraph, wanted: Sequence[Share], out: Path | None) -> list[Path]:
    """Where each target's artifacts go: one's into `out`, several's into a folder each of it, by default here."""
    if out is not None and len(wanted) == 1:
        return [out]
    return [(out or Path()) / pipeline.default_folder(graph, get_target(share.target)) for share in wanted]


def _refuse(
    graph: WeightGraph,
    wanted: Sequence[Share],
    places: Sequence[Path],
    budgets: Budgets,
    settings: Mapping[str, Any],
) -> None:
    """Raises what can be said before anything is written: plans that cannot be, artifacts that are there."""
    progress = settings.get("progress", SILENT)
    may_stay = any(settings.get(name) for name in ("overwrite", "skip_existing", "resume"))
    for share, place in zip(wanted, places, strict=True):
        target = get_target(share.target).with_options(share.options)
        within = {name: settings.get(name) for name in ("jobs", "max_memory")}
        pipeline.measure_costs(graph, target, share.quants or (), **within, progress=progress)
        plans = pipeline.plan(graph, target=share.target, quant=share.quants, options=share.options)
        share.budgets(budgets).refuse(graph.config, plans)
        for plan in plans:
            if not may_stay and (place / plan.main_file).exists():
                raise already_there(place / plan.main_file)


def _together(home: Path, done: Sequence[Converted]) -> Converted:
    """All as the result of one command, with one report."""
    reports = [each.report for each in done if each.report is not None]
    report = reports[0].with_results(result for each in reports for result in each.results) if reports else None
    profile = Profile()
    for each in done:
        for stage, seconds in each.profile.seconds.items():
            profile.seconds[stage] = profile.seconds.get(stage, 0.0) + seconds
    return replace(
        done[0],
        folder=home,
        plans=tuple(plan for each in done for plan in each.plans),
        artifacts=tuple(artifact for each in done for artifact in each.artifacts),
        report=report,
        profile=profile,
    )
