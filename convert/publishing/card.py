"""The card of a repository: what its hub, its visitors and their programs are told of it.

Everything comes from the manifest, so that the same folder gives the same card.
Source: https://huggingface.co/docs/hub/model-cards (metadata), https://huggingface.co/docs/hub/models-download-stats.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path, PurePosixPath
from typing import Any

from ...graph.errors import InputError, UsageError
from ...graph.files import digest
from ...graph.source.assets import LICENSES
from ...graph.text import plain
from ...graph.units import format_size
from ...targets.naming import read_part_name
from ...validate.formats import escape
from ...validate.report import cosine, number, percent, ratio
from ..manifest import Entry, Manifest, adapter_labels, material_hashes
from .ecosystems import ECOSYSTEMS, ECOSYSTEMS_OF_VECTORS, Ecosystem
from .hub import quiet

_PIPELINE, _VECTORS_PIPELINE = "text-generation", "sentence-similarity"
# What a hub calls a licence that is none of its list.
_OTHER = "other"
# The quants that Transformers.js knows by a name of its own.
_DTYPES = {"fp32": "fp32", "fp16": "fp16", "q8": "q8", "q4": "q4", "q4f16": "q4f16"}


@dataclass(frozen=True, kw_only=True)
class CardSource:
    """What a card is made of: the repository, its manifest, what it was quantized from, the file of the licence.

    `base_model` is a hub id, None where it is not known; `license_file` the name of a file of the repository.
    """

    repo: str
    target: str
    manifest: Manifest
    base_model: str | None
    license_file: str | None

    @property
    def gives_vectors(self) -> bool:
        """Whether the model gives vectors, not logits."""
        return any(_measured(entry, "vectors") for entry in self.manifest.artifacts)

    @property
    def ecosystem(self) -> Ecosystem:
        return (ECOSYSTEMS_OF_VECTORS if self.gives_vectors else ECOSYSTEMS)[self.target]


def card_text(source: CardSource) -> str:
    """The card as Markdown, with the front matter that hubs read."""
    import jinja2

    environment = jinja2.Environment(
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
        loader=jinja2.FunctionLoader(_template),
        autoescape=False,  # Markdown: what comes from outside goes through one of these
    )
    environment.filters |= {"prose": lambda text: escape(plain(str(text))), "shell": shlex.quote, "quoted": _quoted}
    return environment.get_template("card.md.j2").render(_facts(source)).rstrip("\n") + "\n"


def check_card(text: str, where: Path) -> None:
    """Raises InputError for a card whose front matter a hub would not take."""
    from huggingface_hub import ModelCard

    try:
        with quiet():
            data = ModelCard(text, ignore_metadata_errors=False).data.to_dict()
    except (ValueError, TypeError) as error:
        raise InputError(f"{where}: a hub would not take its front matter: {error}") from None
    except Exception as error:  # PyYAML's, which is no dependency of ours
        raise InputError(f"{where}: its front matter is not YAML: {' '.join(str(error).split())}") from None
    if not data:
        raise InputError(
            f"{where}: has no front matter between '---' lines, from which a hub takes licence and base model; "
            "add it, or remove the file and one is written"
        )


def _facts(source: CardSource) -> dict[str, Any]:
    """What the template shows."""
    manifest, origin = source.manifest, source.manifest.source
    rows = [_row(entry, source.repo) for entry in manifest.artifacts]
    repository = origin.get("repository") or source.base_model or origin.get("name", "not named")
    revision = f" at {origin['revision']}" if origin.get("revision") else ""
    stored = f", stored as {origin['quantised_as']}" if origin.get("quantised_as") else ""
    listed = material_hashes(origin)
    licence = _licence(source)
    libraries = manifest.tool.get("libraries", {})
    return {
        "front_matter": _front_matter(source),
        "title": source.repo.rpartition("/")[2],
        "repo": source.repo,
        "model": origin.get("name", "the checkpoint"),
        "target": source.target,
        "clients": source.ecosystem.clients,
        "examples": f"run_{source.target}{'_vectors' if source.gives_vectors else ''}.md.j2",
        "gives_vectors": source.gives_vectors,
        "is_pooled": _is_pooled(manifest),
        "version": manifest.tool.get("version", ""),
        "libraries": ", ".join(f"{name} {version}" for name, version in sorted(libraries.items())) or "none noted",
        "rows": rows,
        "first": _first(manifest.artifacts[0]),
        "dtype": next((_DTYPES[e["quant"]] for e in manifest.artifacts if e["quant"] in _DTYPES), None),
        "has_model_file": any(_is_model_file(file["path"]) for e in manifest.artifacts for file in e["files"]),
        "context": max((int((e["validation"] or {}).get("context") or 0) for e in manifest.artifacts), default=0),
        "origin": f"{repository}{revision}{stored}{_merged(origin)}",
        "n_source_files": len(listed),
        "source_sha256": digest(listed),
        "licence": licence.get("license_name") or licence.get("license") or "not named by the checkpoint",
        "licence_file": f", in `{source.license_file}`" if source.license_file else "",
    }


def _front_matter(source: CardSource) -> str:
    from huggingface_hub import ModelCardData

    ecosystem, origin = source.ecosystem, source.manifest.source
    pipeline = _VECTORS_PIPELINE if source.gives_vectors else _PIPELINE
    card = origin.get("card", {})
    relation = "finetune" if adapter_labels(origin) else "quantized"
    fields: dict[str, Any] = {
        "base_model": source.base_model,
        "base_model_relation": None if source.base_model is None else relation,
        "library_name": ecosystem.library,
        "language": _texts(card.get("language")) or None,
        "pipeline_tag": _text(card.get("pipeline_tag")) or pipeline,
        "tags": [*dict.fromkeys([*ecosystem.tags, *_texts(card.get("tags"))])],
        **_licence(source),
        "quantized_by": "lfm-convert",
    }
    return str(ModelCardData(**fields).to_yaml(line_break="\n")).rstrip("\n")


def _merged(origin: Mapping[str, Any]) -> str:
    """The adapters that are part of the model."""
    labels = adapter_labels(origin)
    return f" with the adapter{'s' if len(labels) > 1 else ''} {', '.join(labels)} merged into it" if labels else ""


def _licence(source: CardSource) -> dict[str, str]:
    """License, name and link as the checkpoint's card has them; the link leads to the file that goes along."""
    card = source.manifest.source.get("card", {})
    found = {key: text for key in ("license", "license_name") if (text := _text(card.get(key)))}
    link = source.license_file or _absolute(_text(card.get("license_link")), source.base_model)
    if not found:
        return {"license": _OTHER, "license_link": source.license_file} if source.license_file else {}
    return {**found, "license_link": link} if found["license"] == _OTHER and link else found


def refuse_lost_licence(folder: Path, manifest: Manifest, license_file: str | None) -> None:
    """Raises UsageError where the checkpoint has a licence of its own, whose text must go along and is not there."""
    card = manifest.source.get("card", {})
    if license_file is None and _text(card.get("license")) == _OTHER:
        name = _text(card.get("license_name")) or "a licence of its own"
        raise UsageError(
            f"{folder}: the checkpoint is under {name}, whose text must go along, and none of {', '.join(LICENSES)} "
            "is here: put it beside the artifacts"
        )


def _absolute(link: str, base_model: str | None) -> str:
    """A link that leads somewhere from another repository."""
    if not link or "://" in link:
        return link
    return f"https://huggingface.co/{base_model}/blob/main/{link}" if base_model else ""


def _row(entry: Entry, repo: str) -> dict[str, str]:
    found: Mapping[str, Any] = entry["validation"] or {}
    metrics, vectors = _measured(entry, "metrics"), _measured(entry, "vectors")
    kld, se = metrics.get("kld_mean"), metrics.get("kld_se")
    size = sum(file["bytes"] for file in entry["files"])
    return {
        "name": _label(entry, repo),
        "quant": entry["quant"],
        "size": format_size(size),
        "kld": number(kld) if se is None else f"{number(kld)} ± {number(se)}",
        "top1": percent(metrics.get("same_top1")),
        "ppl": ratio(metrics.get("ppl_ratio")),
        "cosine": cosine(vectors.get("cosine_mean")),
        "lowest": cosine(vectors.get("cosine_min")),
        "nearest": percent(vectors.get("same_nearest")),
        "memory": format_size(found["run_bytes"]) if found.get("run_bytes") else "–",
        "backend": str(found.get("backend") or "–"),
    }


def _measured(entry: Entry, what: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = (entry["validation"] or {}).get(what) or {}
    return found


def _is_pooled(manifest: Manifest) -> bool:
    """Whether a text has one vector."""
    found = [_measured(entry, "vectors") for entry in manifest.artifacts]
    return any(each and each["n_vectors"] == each["n_prompts"] for each in found)


def _first(entry: Entry) -> dict[str, Any]:
    """The artifact that the examples run."""
    paths = [file["path"] for file in entry["files"]]
    main = PurePosixPath(entry["main_file"])
    part = read_part_name(main.name, main.suffix)
    return {
        "quant": entry["quant"],
        "main_file": main.as_posix(),
        "n_files": len(paths),
        "pattern": (main.with_name(f"{part.stem}-*{main.suffix}") if part else main).as_posix(),
        "data_file": next((path for path in paths if path.endswith(".ptd")), None),
        "package": main.parent.as_posix(),
    }


def _label(entry: Entry, repo: str) -> str:
    """A file's name; of a package, or of a repository that is one artifact, its own."""
    main = PurePosixPath(entry["main_file"])
    if ECOSYSTEMS[entry["target"]].is_alone:
        return repo.rpartition("/")[2]
    return main.parent.name if main.parent.suffix == ".mlpackage" else main.as_posix()


def _is_model_file(path: str) -> bool:
    """Whether a file is a model's class, which a client runs only if it is told that it may."""
    return path.endswith(".py")


def _template(name: str) -> str:
    return (files(__package__) / name).read_text(encoding="utf-8")


def _quoted(text: str) -> str:
    """A text as Python, JavaScript and Swift spell one, on one line."""
    return json.dumps(text, ensure_ascii=False)


def _texts(value: Any) -> list[str]:
    found: Sequence[Any] = value if isinstance(value, list) else [value]
    return [text for text in found if isinstance(text, str) and text]


def _text(value: Any) -> str:
    return next(iter(_texts(value)), "")
