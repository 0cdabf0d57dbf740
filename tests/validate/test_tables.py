"""Tables on a console, whose numbers stand whole at every width."""

from __future__ import annotations

import io

import pytest
from lfm_convert.validate.tables import print_rows
from rich.console import Console
from rich.text import Text

HEADINGS = ("file", "target", "bytes", "memory to run")
ROWS = [
    ("a-model-of-a-long-name-Q4_K_M.gguf", "gguf", "4,733,123,456", "5.12 GB"),
    ("b\x1b[2J.gguf", "gguf", "8", Text("99.8 MB", style="red")),
]


def _printed(width: int, *, terminal: bool, color: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, color_system="standard" if color else None)
    print_rows(console, HEADINGS, ROWS, texts=("target",))
    return stream.getvalue()


@pytest.mark.parametrize("width", [25, 40, 79, 80, 200])
def test_every_cell_is_whole_and_no_line_is_wider_than_the_terminal(width: int) -> None:
    lines = _printed(width, terminal=True).splitlines()
    for row in ROWS:
        for cell in row[1:]:
            assert any(str(cell) in line for line in lines)
    assert all(len(line) <= width or line == ROWS[0][0] for line in lines)


def test_what_fits_is_aligned() -> None:
    lines = _printed(80, terminal=True).splitlines()
    assert len(lines) == 3 and {len(line) for line in lines} == {len(lines[0])}
    assert lines[1].index(" gguf ") + 1 == lines[0].index("target")


def test_off_a_terminal_lines_are_as_long_as_they_need() -> None:
    assert _printed(10, terminal=False).splitlines()[1].split() == [*ROWS[0][:3], "5.12", "GB"]


def test_names_do_not_steer_the_terminal_and_styles_stay() -> None:
    for width in (40, 80):
        shown = _printed(width, terminal=True, color=True)
        assert "\\x1b[2J" in shown and "\x1b[2J" not in shown
        assert "\x1b[31m" in shown


def test_no_rows() -> None:
    stream = io.StringIO()
    print_rows(Console(file=stream, width=200), HEADINGS, [])
    assert stream.getvalue().split() == ["file", "target", "bytes", "memory", "to", "run"]
