"""Tables on a console: aligned where they fit, else a paragraph a row. No number is cut, whatever the width."""

from __future__ import annotations

import textwrap
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from ..graph.text import plain

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

# Joins words that belong to one cell while a paragraph is wrapped: no cell has it, since it is a control character.
_JOIN = "\x1f"


def print_rows(
    console: Console,
    headings: Sequence[str],
    rows: Sequence[Sequence[str | Text]],
    *,
    texts: Collection[str] = (),
) -> None:
    """Prints rows of cells under headings; the first column and those named in `texts` are set flush left.

    Where a terminal is too narrow for a row, its first cell gets a line and the others follow with their headings. Off a
    terminal lines are as long as they need. A cell that is a rich `Text` keeps its style.
    """
    from rich.text import Text

    cells = [[cell if isinstance(cell, Text) else Text(plain(cell)) for cell in row] for row in rows]
    widths = [max(len(heading), *(cell.cell_len for cell in column), 0)
              for heading, column in zip(headings, _columns(cells, len(headings)), strict=True)]  # fmt: skip
    if console.is_terminal and sum(widths) + 2 * (len(widths) - 1) > console.width:
        for row in cells:
            _print_paragraph(console, headings, row)
        return
    left = [number == 0 or heading in texts for number, heading in enumerate(headings)]
    for line in ([Text(heading, style="bold") for heading in headings], *cells):
        shown = Text("  ").join(_padded(*each) for each in zip(line, widths, left, strict=True))
        shown.rstrip()
        console.print(shown, soft_wrap=True)


def _columns(rows: Sequence[Sequence[Text]], n: int) -> list[list[Text]]:
    return [[row[number] for row in rows] for number in range(n)]


def _padded(cell: Text, width: int, is_left: bool) -> Text:
    from rich.text import Text

    room = Text(" " * (width - cell.cell_len))
    return cell + room if is_left else room + cell


def _print_paragraph(console: Console, headings: Sequence[str], row: Sequence[Text]) -> None:
    """`quant Q4_0, size 2.04 MB, …` below the first cell."""
    from rich.text import Text

    told = [(f"{heading} {cell.plain}", cell.style) for heading, cell in zip(headings[1:], row[1:], strict=True)]
    text = ", ".join(words.replace(" ", _JOIN) for words, _ in told)
    console.print(Text(row[0].plain, style="bold"), soft_wrap=True)
    wrapped = textwrap.wrap(
        text, max(console.width - 2, 1), break_long_words=False, break_on_hyphens=False, initial_indent="  ",
        subsequent_indent="  ",
    )  # fmt: skip
    for line in wrapped:
        shown = Text(line.replace(_JOIN, " "))
        for words, style in told:
            shown.highlight_words([words], style)
        console.print(shown, soft_wrap=True)
