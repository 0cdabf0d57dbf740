"""The name of a file or folder that is made of a model's name, which may hold anything."""

from __future__ import annotations

import re
import sys

# What a file system, a shell's pattern (MLX looks for its shards by one) or UTF-8 does not take in a name.
_UNFIT = re.compile(r'[\s/\\:*?"<>|\[\]\x00-\x1f\x7f-\x9f\ud800-\udfff]')
_MAX_BYTES = 200  # file systems take 255, of which the shard's number and a temporary's ending need some


def fit_name(name: str, ending: str) -> str:
    """The name with hyphens for what does not fit, cut to a length that leaves room, then the ending as it is."""
    coding = sys.getfilesystemencoding()  # ASCII in the C locale: what it lacks becomes a question mark, and so unfit
    fit = _UNFIT.sub("-", name.strip().encode(coding, "replace").decode(coding)).lstrip(".-") or "model"
    return fit.encode()[: _MAX_BYTES - len(ending)].decode(errors="ignore") + ending
