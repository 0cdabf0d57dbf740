"""The table of README and docs/families.md is what the targets plan."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.families import FAMILIES
from support.family_table import table

ROOT = Path(__file__).parents[2]
BEGIN, END = "<!-- made by tests/support/family_table.py -->\n", "<!-- end -->"


@pytest.fixture(scope="module")
def planned() -> str:
    return table()


@pytest.mark.parametrize("page", ["README.md", "docs/families.md"])
def test_pages_show_what_targets_take(page: str, planned: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == planned


def test_the_help_says_what_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--help"])
    said = capsys.readouterr().out
    for family in FAMILIES:
        assert family.name.partition("-")[0].partition(" ")[0] in said
