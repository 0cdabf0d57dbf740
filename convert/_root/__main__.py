"""`python -m lfm_convert`."""

from .convert.cli.main import run

run()
