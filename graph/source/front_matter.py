"""What a model card says to programs: the YAML it starts with."""

from __future__ import annotations

from typing import Any


def front_matter(model_card: str | None) -> dict[str, Any]:
    """The YAML between the `---` lines a card starts with; empty without one, or without PyYAML.

    A card is prose for people: one that is malformed says nothing, and does not stop a conversion.
    """
    lines = (model_card or "").splitlines()
    if not lines or lines[0] != "---" or "---" not in lines[1:]:
        return {}
    try:
        import yaml  # type: ignore[import-untyped]
    except ModuleNotFoundError:
        return {}
    text = "\n".join(lines[1 : lines.index("---", 1)]).replace("\t", "  ")
    try:
        found = yaml.load(text, Loader=yaml.BaseLoader)
    except (yaml.YAMLError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
