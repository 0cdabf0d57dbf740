"""The steps that show an artifact to others: the card of a folder, and its repositories on a hub.

validate ARTIFACT … ─► card FOLDER ─► publish FOLDER
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..._version import __version__
from ...graph.errors import InputError, UsageError
from ...graph.files import is_file
from ..manifest import Entry, Manifest
from ..publishing.hub import find_token
from ..publishing.names import CARD_FILE
from ..publishing.publish import Place, publish
from ..publishing.repositories import assign, open_folder
from ..publishing.write_card import write_card
from ..recipe.reading import Recipe
from .prepared import Prepared
from .site import Site, Step
from .state import content_key
from .steps import Validate

_TO = ("publish", "to")


@dataclass(frozen=True, kw_only=True)
class Repositories:
    """`[publish]` of a recipe: what the repositories are called, and how they are written to."""

    to: str
    base_model: str | None
    sign_key: Path | None
    place: Place

    @classmethod
    def of(cls, recipe: Recipe) -> Repositories | None:
        """None of a recipe that says nothing of them."""
        table: Mapping[str, Any] = recipe.publish
        if not table:
            return None
        key = table.get("sign_key")
        place = Place(
            branch=table.get("branch"),
            in_pull_request=bool(table.get("pull_request")),
            private=bool(table.get("private")),
        )
        return cls(
            to=table["to"],
            base_model=table.get("base_model"),
            sign_key=None if key is None else recipe.seen(key),
            place=place,
        )


def _refuse_unfit(recipe: Recipe, folders: Mapping[Path, Sequence[Prepared]], *, publishes: bool) -> None:
    """Raises UsageError, or InputError for a key to sign with that is not there: for a name that no repository can have,
    two folders of one name, or nothing to publish to.
    """
    found = Repositories.of(recipe)
    if found is None:
        if publishes:
            recipe.text.refuse((), '--publish: expected a table [publish] with to = "ORG/{model}-{TARGET}"', UsageError)
        return
    if recipe.publish.get("pull_request") and recipe.publish.get("branch"):
        recipe.text.refuse(("publish", "branch"), "publish.branch: a pull request is always against main", UsageError)
    if publishes and found.sign_key is not None and not is_file(found.sign_key):
        recipe.text.refuse(("publish", "sign_key"), f"publish.sign_key: {found.sign_key}: not found")
    owners: dict[str, Path] = {}
    for folder, own in folders.items():
        entries = [{"target": e.plan.target, "quant": e.plan.quant, "main_file": e.plan.main_file} for e in own]
        try:
            names = assign(Manifest(folder, {"name": own[0].graph.name}), entries, found.to)
        except UsageError as error:
            raise recipe.text.blame(_TO, error) from None
        for name in names:
            if owners.setdefault(name, folder) != folder:
                recipe.text.refuse(
                    _TO,
                    f"publish.to: {folder} and {owners[name]} would both be {name}: write {{TARGET}} in it",
                    UsageError,
                )
    if publishes:
        find_token()


def steps_behind(site: Site, comparisons: Sequence[Validate], *, publishes: bool) -> list[Step]:
    """The cards of a release, and its publication where that is asked for; nothing without `[publish]`.

    Raises: UsageError or InputError for what cannot be published, before any work.
    """
    by_folder: dict[Path, list[Validate]] = {}
    for each in comparisons:
        by_folder.setdefault(each.conversion.artifact.folder, []).append(each)
    artifacts = {folder: [each.conversion.artifact for each in own] for folder, own in by_folder.items()}
    _refuse_unfit(site.preparation.recipe, artifacts, publishes=publishes)
    repositories = Repositories.of(site.preparation.recipe)
    if repositories is None:
        return []
    cards = [Card(site, folder, own, repositories) for folder, own in by_folder.items()]
    return [*cards, *(Publish(card) for card in cards if publishes)]


class Card(Step):
    """README.md of a folder whose artifacts are one repository. Of a folder that is several each gets its own when it is
    published.
    """

    kind = "card"
    travels = False

    def __init__(self, site: Site, folder: Path, comparisons: Sequence[Validate], repositories: Repositories) -> None:
        super().__init__(site, site.place(folder), comparisons)
        self.folder, self.comparisons, self.repositories = folder, comparisons, repositories
        self._path = folder / CARD_FILE

    def shown(self) -> Manifest:
        """The folder's manifest with the artifacts to show: those of this run, and others here that may be published."""
        for each in self.comparisons:
            each.judged()  # by the recipe as it is now
        own = {each.conversion.artifact.plan.main_file for each in self.comparisons}
        manifest = open_folder(self.folder)
        entries = tuple(e for e in manifest.artifacts if e["main_file"] in own or _may_be_shown(e))
        return replace(manifest, artifacts=entries)

    def is_done(self) -> bool:
        try:
            return self.site.state.made.get(self._place) == self._made(self.shown())
        except (InputError, OSError):
            return False

    def _made(self, shown: Manifest) -> str:
        """What the card is made of and by, and its own hash."""
        about = [[entry[name] for name in ("main_file", "quant", "files", "validation")] for entry in shown.artifacts]
        key = content_key(
            self.kind, __version__, about, shown.source, self.repositories.to, self.repositories.base_model
        )
        return f"{key} {self._sha256()}"

    @property
    def _place(self) -> str:
        return f"{self.kind} {self.name}"

    def _sha256(self) -> str:
        return self.site.state.hashes([self._path])[0] if is_file(self._path) else ""

    def carry_out(self) -> None:
        """Raises: as `write_card`."""
        start = time.monotonic()
        shown = self.shown()
        if len(assign(shown, shown.artifacts, self.repositories.to)) == 1:
            write_card(
                self.folder,
                self.repositories.to,
                only=_names(shown),
                base_model=self.repositories.base_model,
                overwrite=self.site.overwrite,
            )
        self.site.state.finished(self.label, time.monotonic() - start, **{self._place: self._made(shown)})


def _names(manifest: Manifest) -> tuple[str, ...]:
    return tuple(entry["main_file"] for entry in manifest.artifacts)


def _may_be_shown(entry: Entry) -> bool:
    found = entry["validation"] or {}
    return found.get("verdict") == "pass" and found.get("fit") != "over"


class Publish(Step):
    """The repositories of a folder on a hub. Whatever is there already with the same bytes is not sent again."""

    kind = "publish"
    travels = False

    def __init__(self, card: Card) -> None:
        super().__init__(card.site, card.name, (card,))
        self.card = card

    def is_done(self) -> bool:
        return False  # only the hub knows

    def carry_out(self) -> None:
        """Raises: as `publish`."""
        start = time.monotonic()
        repositories = self.card.repositories
        done = publish(
            self.card.folder,
            repositories.to,
            place=repositories.place,
            only=_names(self.card.shown()),
            base_model=repositories.base_model,
            sign_key=repositories.sign_key,
            overwrite=self.site.overwrite,
            progress=self.site.progress,
        )
        for each in done:
            for line in each.lines():
                self.site.progress.note(line)
        self.site.state.finished(self.label, time.monotonic() - start)
