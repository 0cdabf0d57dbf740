"""Pictures of a report in a real browser, for the documentation: `make screenshots`.

    python tests/support/screenshots.py REPORT.html FOLDER

Takes the page at three widths, light and dark, with Chromium's headless shell.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

BROWSERS = ("chromium-headless-shell", "chromium", "google-chrome")
# Width and height of the window in pixels; a narrow page is longer.
WINDOWS = ((400, 2400), (800, 2200), (1400, 2200))
# What Chromium's number of a colour scheme adds to a name.
SCHEMES = {1: "", 0: "-dark"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        sys.exit("no browser: apt-get install --no-install-recommends chromium-headless-shell")
    for (width, height), (scheme, suffix) in product(WINDOWS, SCHEMES.items()):
        picture = options.folder / f"report-{width}{suffix}.webp"
        command = [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
            f"--screenshot={picture}", f"--window-size={width},{height}",
            f"--blink-settings=preferredColorScheme={scheme}", options.report.resolve().as_uri(),
        ]  # fmt: skip
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        print(f"{picture}: {picture.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
