"""The table of docs/families.md is what the targets plan."""

from __future__ import annotations

from pathlib import Path

from support.family_table import table

PAGE = Path(__file__).parents[2] / "docs" / "families.md"
BEGIN, END = "<!-- made by tests/support/family_table.py -->\n", "<!-- end -->"


def test_the_page_shows_what_targets_take() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.partition(BEGIN)[2].partition(END)[0].strip() == table()
