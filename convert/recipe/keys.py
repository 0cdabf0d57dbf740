"""Every table and key of a recipe, once: the reader, the JSON Schema and the page of the documentation are made of it."""

from __future__ import annotations

import enum
from collections.abc import Iterator
from dataclasses import dataclass

from ..bundled import CHOICES
from ..calibration import CHUNK_TOKENS, LEAST_CHUNK_TOKENS
from .kinds import (
    COUNT,
    FILE,
    FILES,
    FLAG,
    FOLDER,
    FOLDERS,
    FRACTION,
    MERGE_DTYPE,
    NAMES,
    NATS,
    NUMBERS,
    PLACE,
    SECONDS,
    SIZE,
    SUITE,
    TARGET,
    TARGETS,
    TEXT,
    TUNED,
    Kind,
    at_least,
)


class Form(enum.Enum):
    """How often a table stands in a recipe: once, once for each name that the user gives, or in a list."""

    ONE = "one"
    NAMED = "named"
    LIST = "list"


@dataclass(frozen=True, kw_only=True)
class Key:
    """One key. `help` is a phrase for the page; `default` says what holds without it, in words."""

    name: str
    kind: Kind
    help: str
    default: str = ""
    is_needed: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """One table. `name` is its header, in which `NAME` or `QUANT` stands for what the user gives.

    `at_least_one` are keys of which one must be there. `by_name` is the table of the same keys for each name in this one.
    One that `is_open` has the keys of a target, which checks them itself.
    """

    name: str
    help: str
    form: Form = Form.ONE
    keys: tuple[Key, ...] = ()
    tables: tuple[Table, ...] = ()
    at_least_one: tuple[str, ...] = ()
    by_name: str = ""
    is_open: bool = False

    @property
    def key(self) -> str:
        """The last part of its header that is a key of TOML."""
        parts = self.name.split(".")
        return parts[-2] if self.form is Form.NAMED else parts[-1]

    def walk(self) -> Iterator[Table]:
        """This table and all below it, as they are written."""
        yield self
        for table in self.tables:
            yield from table.walk()


_MODEL_WORDS = f"folder, hub id, URL, or {CHOICES}"
_BUDGETS = (
    Key(name="max_size", kind=SIZE, help="the most that all files of an artifact may have together"),
    Key(name="max_file_size", kind=SIZE, help="the most that its largest file may have"),
)

MODELS = Table(
    name="models.NAME",
    form=Form.NAMED,
    help="a checkpoint to release, where there are several, or one has more to say than `model`",
    keys=(
        Key(name="model", kind=TEXT, help=_MODEL_WORDS, is_needed=True),
        Key(name="revision", kind=TEXT, help="branch, tag or commit of a hub id", default="main"),
        Key(name="name", kind=TEXT, help="what its artifacts are called by", default="the folder's or repository's"),
        Key(name="adapters", kind=FOLDERS, help="LoRA adapters of PEFT that are merged into it, in their order"),
        Key(name="adapter_weights", kind=NUMBERS, help="what each adapter is multiplied by", default="1 for each"),
        Key(
            name="merge_dtype", kind=MERGE_DTYPE, help="what merged weights are kept in", default="the base's own type"
        ),
        Key(name="token", kind=TEXT, help="the environment variable that holds the hub's token for it"),
    ),
)
CALIBRATION = Table(
    name="calibration",
    help="measures once for each model how much each column is used; artifacts that are `calibrated` are weighed by it",
    keys=(
        Key(
            name="text",
            kind=FILES,
            help='texts, or .jsonl with one {"messages": […]} a line',
            default="the text that comes with the tool",
        ),
        Key(
            name="chunk_size",
            kind=at_least(LEAST_CHUNK_TOKENS),
            help="tokens that see each other",
            default=str(CHUNK_TOKENS),
        ),
        Key(name="max_chunks", kind=COUNT, help="stops after so many", default="all"),
    ),
)
OPTIONS = Table(
    name="artifacts.options",
    is_open=True,
    help="options of the target, by the names that the page of the target has, with `_` for `-`",
)
ARTIFACTS = Table(
    name="artifacts",
    form=Form.LIST,
    help="some artifacts of one target: an artifact for each model and quant",
    keys=(
        Key(name="target", kind=TARGET, help="what they are written for", is_needed=True),
        Key(name="quants", kind=NAMES, help='names of quants; "all" is every one', default="the target's default"),
        Key(name="models", kind=NAMES, help="names of `[models]`", default="all"),
        Key(name="folder", kind=TEXT, help="below `out`; {model} in it is the model's name", default="{model}-TARGET"),
        Key(name="label", kind=TEXT, help="ends the artifacts' names, where two would have the same"),
        Key(name="calibrated", kind=FLAG, help="weighs columns by `[calibration]`", default="false"),
        Key(name="tune", kind=TUNED, help="what is tuned by the folder of `options.statistics`", default="nothing"),
        Key(name="strict", kind=FLAG, help="refuses encodings other than the quant names", default="false"),
        Key(name="devices", kind=NAMES, help="classes of `[devices]` that they must fit", default="none"),
        *_BUDGETS,
    ),
    tables=(OPTIONS,),
)
VALIDATION = Table(
    name="validation",
    help="what artifacts are run on, and with how much of the machine",
    keys=(
        Key(name="suite", kind=SUITE, help="which of the shared prompts", default="standard"),
        Key(name="prompts", kind=FILE, help="JSON lines of text, messages or ids instead of a suite"),
        Key(name="text", kind=FILE, help="a text instead of a suite, read as llama-perplexity does"),
        Key(name="chunks", kind=COUNT, help="chunks of `text`", default="all"),
        Key(name="threads", kind=COUNT, help="threads of each runtime", default="all cores"),
        Key(name="time_limit", kind=SECONDS, help="for running each artifact", default="by its size"),
        Key(name="max_memory", kind=SIZE, help="what each process may hold beside the files it maps"),
        Key(name="reference_cache", kind=FOLDER, help="keeps the checkpoint's own run", default="in `out`"),
        Key(name="baseline", kind=FILE, help="results that artifacts are held to, too"),
        Key(name="require_baseline", kind=FLAG, help="fails one that it has no entry for", default="false"),
    ),
)
GATES = Table(
    name="gates",
    by_name="gates.QUANT",
    help="lines of your own, for all quants; in a table of its name, those of a quant in their place",
    keys=(
        Key(name="max_kld", kind=NATS, help="the largest mean KL divergence, in nats"),
        Key(name="min_top1", kind=FRACTION, help="how often the likeliest token must be the checkpoint's"),
        Key(name="max_ppl_change", kind=FRACTION, help="how far perplexity may be from the checkpoint's"),
        Key(
            name="min_cosine",
            kind=FRACTION,
            help="the least mean cosine with the checkpoint's, of models that give vectors",
        ),
    ),
)
DEVICES = Table(
    name="devices.NAME",
    form=Form.NAMED,
    help="what a class of devices has room for",
    keys=(
        *_BUDGETS,
        Key(name="max_memory", kind=SIZE, help="the most that running it may take, at `context` tokens"),
        Key(name="context", kind=COUNT, help="tokens of a conversation", default="4096"),
        Key(name="targets", kind=TARGETS, help="targets that are meant for it", default="all"),
        Key(name="quants", kind=NAMES, help="quants that are meant for it", default="all"),
    ),
    at_least_one=("max_size", "max_file_size", "max_memory"),
)
REPORTS = Table(
    name="reports",
    help="files that tell of all artifacts; a path that begins with {out} lies in the output folder",
    keys=(
        Key(name="html", kind=FILE, help="a page"),
        Key(name="markdown", kind=FILE, help="a summary for a pull request"),
        Key(name="junit", kind=FILE, help="a suite for each artifact, for a build server"),
        Key(name="json", kind=FILE, help="all numbers, as docs/report.schema.json has them"),
    ),
)
PUBLISH = Table(
    name="publish",
    help="repositories of a hub: each folder gets its card, and `release --publish` sends what passed",
    keys=(
        Key(name="to", kind=TEXT, help="their names: ORG/{model}-{TARGET}, also {target} and {quant}", is_needed=True),
        Key(name="branch", kind=TEXT, help="branch to commit to", default="main"),
        Key(name="pull_request", kind=FLAG, help="opens a pull request in place of a commit", default="false"),
        Key(name="private", kind=FLAG, help="a repository that is made is private", default="false"),
        Key(name="base_model", kind=TEXT, help="the checkpoint's own repository", default="where it was fetched"),
        Key(name="sign_key", kind=FILE, help="private key in PEM: adds provenance and a signature"),
    ),
)
RECIPE = Table(
    name="",
    help="the recipe itself",
    keys=(
        Key(name="model", kind=TEXT, help=f"the checkpoint: {_MODEL_WORDS}"),
        Key(name="revision", kind=TEXT, help="branch, tag or commit of a hub id", default="main"),
        Key(name="out", kind=PLACE, help="the folder that artifacts are written below", default="release"),
    ),
    tables=(MODELS, ARTIFACTS, CALIBRATION, VALIDATION, GATES, DEVICES, REPORTS, PUBLISH),
)
