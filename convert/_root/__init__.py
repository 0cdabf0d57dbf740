"""lfm-convert: one checkpoint into artifacts for every edge runtime, each proven."""

from ._version import __version__

__all__ = ["__version__"]
