"""The graph of a release: which steps there are, and where they are done."""

from __future__ import annotations

from ...graph.errors import LfmConvertError
from ...validate.baseline import load_baseline
from .prepared import Preparation
from .sharing import steps_behind
from .site import Site, Step
from .state import State
from .steps import Calibrate, Convert, Reference, Validate

STATE_FILE = "state.json"


def site_of(preparation: Preparation, **how: object) -> Site:
    """Where the steps of a release are done. Raises: InputError for a baseline that cannot be read."""
    recipe = preparation.recipe
    stored = recipe.validation.get("baseline")
    try:
        baseline = None if stored is None else load_baseline(recipe.seen(stored))
    except LfmConvertError as error:
        raise recipe.text.blame(("validation", "baseline"), error) from None
    output, path = preparation.output, preparation.private / STATE_FILE
    output.bring(path, *preparation.small_files)
    state = State(path, passing=None if output.is_here else output.folder)
    return Site(preparation=preparation, state=state, baseline=baseline, **how)  # type: ignore[arg-type]


def steps_of(site: Site, *, publishes: bool = False) -> list[Step]:
    """The graph of a release, what is needed first: all conversions, all comparisons, cards, publication."""
    preparation = site.preparation
    calibrated = {each.wanted.model.label for each in preparation.artifacts if each.wanted.entry.calibrated}
    calibrations = {label: Calibrate(site, label) for label in preparation.graphs if label in calibrated}
    references = {label: Reference(site, label) for label in preparation.graphs}
    conversions = [
        Convert(site, each, calibrations.get(each.wanted.model.label) if each.wanted.entry.calibrated else None)
        for each in preparation.artifacts
    ]
    comparisons = [Validate(site, each, references[each.artifact.wanted.model.label]) for each in conversions]
    shown = steps_behind(site, comparisons, publishes=publishes)
    return [*calibrations.values(), *conversions, *references.values(), *comparisons, *shown]
