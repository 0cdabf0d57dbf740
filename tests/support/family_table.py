"""Which target takes which family, by planning a published config of it for each: `python tests/support/family_table.py`.

The table of docs/families.md; a test compares them.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from lfm_convert.convert.pipeline import open_model, plan
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.families import FAMILIES
from lfm_convert.targets.target import target_names

from support.configs import dense_25_config, lfm3_config, moe_config
from support.family_configs import PUBLISHED

_OWN = {"lfm2": dense_25_config(), "lfm2_moe": moe_config(), "lfm3": lfm3_config()}


def table() -> str:
    """Markdown: a row a family, a column a target; a dot where the target takes it."""
    names = target_names()
    rows = [
        "| family | model_type | " + " | ".join(f"`{name}`" for name in names) + " |",
        "|---" * (2 + len(names)) + "|",
    ]
    for family in FAMILIES:
        marks = ["yes" if takes(family.model_type, name) else "-" for name in names]
        rows.append(f"| {family.name} | `{family.model_type}` | " + " | ".join(marks) + " |")
    return "\n".join(rows)


def takes(model_type: str, target: str) -> bool:
    """Whether a target plans every example of a family."""
    published = [config for config in PUBLISHED.values() if config["model_type"] == model_type]
    return all(_is_planned(config, target) for config in published or [_OWN[model_type]])


def _is_planned(config: dict, target: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.json").write_text(json.dumps(config))
        try:
            plan(open_model(folder, weights=False), target=target)
        except UsageError:
            return False
    return True


if __name__ == "__main__":
    print(table())
