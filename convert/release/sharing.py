"""The steps that show an artifact to others: the card of a folder, and its repositories on a hub.

validate ARTIFACT … ─► card FOLDER ─► publish FOLDER
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
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
from .state import content_key
from .steps import Site, Step, Validate

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


def refuse_unfit(recipe: Recipe, artifacts: Sequence[Prepared], *, publishes: bool) -> None:
    """Raises UsageError, or InputError for a key to sign with that is not there, before any work: for a name that no
    repository can have, two folders of one name, or nothing to publish to.
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
    for folder, own in _by_folder(artifacts).items():
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


def _by_folder(artifacts: Iterable[Prepared]) -> dict[Path, list[Prepared]]:
    found: dict[Path, list[Prepared]] = {}
    for each in artifacts:
        found.setdefault(each.folder, []).append(each)
    return found


def steps_behind(site: Site, comparisons: Sequence[Validate], *, publishes: bool) -> list[Step]:
    """The cards of a release, and its publication where that is asked for; nothing without `[publish]`."""
    repositories = Repositories.of(site.preparation.recipe)
    if repositories is None:
        return []
    by_folder: dict[Path, list[Validate]] = {}
    for each in comparisons:
        by_folder.setdefault(each.conversion.artifact.folder, []).append(each)
    cards = [Card(site, folder, own, repositories) for folder, own in by_folder.items()]
    return [*cards, *(Publish(card) for card in cards if publishes)]


class Card(Step):
    """README.md of a folder whose artifacts are one repository. Of a folder that is several each gets its own when it is
    published.
    """

    kind = "card"

    def __init__(self, site: Site, folder: Path, comparisons: Sequence[Validate], repositories: Repositories) -> None:
        super().__init__(site, site.place(folder), comparisons)
        self.folder, self.comparisons, self.repositories = folder, comparisons, repositories
        self._path = folder / CARD_FILE

    @property
    def entries(self) -> list[Entry]:
        """What the manifest says of the artifacts to show: those of this run, and others here that may be published."""
        for each in self.comparisons:
            each.judged()  # by the recipe as it is now
        own = {each.conversion.artifact.plan.main_file for each in self.comparisons}
        return [e for e in open_folder(self.folder).artifacts if e["main_file"] in own or _may_be_shown(e)]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(entry["main_file"] for entry in self.entries)

    @property
    def key(self) -> str:
        about = [[entry[name] for name in ("main_file", "quant", "files", "validation")] for entry in self.entries]
        source = open_folder(self.folder).source
        return content_key(self.kind, __version__, about, source, self.repositories.to, self.repositories.base_model)

    def is_done(self) -> bool:
        try:
            return self.site.state.made.get(self._place) == f"{self.key} {self._sha256()}"
        except (InputError, OSError):
            return False

    @property
    def _place(self) -> str:
        return f"{self.kind} {self.name}"

    def _sha256(self) -> str:
        return self.site.state.hashes([self._path])[0] if is_file(self._path) else ""

    def carry_out(self) -> None:
        """Raises: as `write_card`."""
        start = time.monotonic()
        names = self.names
        manifest = open_folder(self.folder)
        if len(assign(manifest, [e for e in manifest.artifacts if e["main_file"] in names], self.repositories.to)) == 1:
            write_card(
                self.folder,
                self.repositories.to,
                only=names,
                base_model=self.repositories.base_model,
                overwrite=self.site.overwrite,
            )
        made = f"{self.key} {self._sha256()}"
        self.site.state.finished(self.label, time.monotonic() - start, **{self._place: made})


def _may_be_shown(entry: Entry) -> bool:
    found = entry["validation"] or {}
    return found.get("verdict") == "pass" and found.get("fit") != "over"


class Publish(Step):
    """The repositories of a folder on a hub. Whatever is there already with the same bytes is not sent again."""

    kind = "publish"

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
            only=self.card.names,
            base_model=repositories.base_model,
            sign_key=repositories.sign_key,
            overwrite=self.site.overwrite,
            progress=self.site.progress,
        )
        for each in done:
            for line in each.lines():
                self.site.progress.note(line)
        self.site.state.finished(self.label, time.monotonic() - start)
