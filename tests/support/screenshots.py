"""Pictures of a report in a real browser, for the documentation: `make screenshots`.

    python tests/support/screenshots.py REPORT.html FOLDER

Takes the page on a wide and on a narrow window, light and dark, with Chromium's headless shell.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
# Name, width and height of the window in pixels, and Chromium's number of the colour scheme.
VIEWS = (
    ("report-wide", 1440, 1500, 1),
    ("report-dark", 1440, 1500, 0),
    ("report-narrow", 390, 1500, 1),
    ("report-narrow-dark", 390, 1500, 0),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no browser: apt-get install --no-install-recommends chromium-headless-shell")
    for name, width, height, scheme in VIEWS:
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--screenshot={options.folder / name}.png", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={scheme}", options.report.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        print(options.folder / f"{name}.png")


if __name__ == "__main__":
    main()
