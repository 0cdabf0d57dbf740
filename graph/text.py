"""Text that came from outside, such as a path, a name or a template, made fit to be shown."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Characters that a terminal would act on; of them a text may hold line ends and tabs.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def plain(text: str) -> str:
    """The text with control characters as escapes, so that a name or a template cannot steer the terminal."""
    return _CONTROLS.sub(lambda found: f"\\x{ord(found[0]):02x}", text.replace("\r\n", "\n"))


# A path from the root down to its last part: what stands before it is no part of a word, an address or another path.
_FOLDERS = re.compile(r"(?<![\w.~/:\\-])(?:/[^\s/:'\"`,;()\[\]<>]+)+/(?=[^\s/])|(?<!\w)[A-Za-z]:\\(?:[^\s\\:'\"]+\\)+")


def without_folders(text: str, known: Iterable[str] = ()) -> str:
    """The text with each absolute path cut to its last part: where files lay is nothing that documents tell.

    `known` folders are found whole, whatever their names hold; others end where a space or a quotation mark does.
    """
    for folder in sorted(known, key=len, reverse=True):
        if len(folder) > 1:
            text = text.replace(f"{folder}/", "").replace(f"{folder}\\", "")
    return _FOLDERS.sub("", text)
