"""Runs commands and draws what a terminal shows of them: `terminal_still.py OUT.svg COMMAND …`, each in one argument."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

# Wide enough for the table of a comparison.
COLUMNS = 128


def main() -> None:
    picture, *commands = sys.argv[1:]
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    environment = {**os.environ, "FORCE_COLOR": "1", "TTY_INTERACTIVE": "0", "COLUMNS": str(COLUMNS)}
    with tempfile.TemporaryDirectory() as folder:
        for command in commands:
            console.print(Text.assemble(("$ ", "dim"), (command, "bold")))
            done = subprocess.run(
                shlex.split(command), cwd=folder, env=environment, text=True, check=True, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
            console.print(Text.from_ansi(done.stdout))
    drawn = console.export_svg(title="lfm-convert")
    # A page is not to ask a third party for a font.
    Path(picture).write_text(re.sub(r"@font-face \{.*?\}\s*", "", drawn, flags=re.DOTALL), encoding="utf-8")


if __name__ == "__main__":
    main()
