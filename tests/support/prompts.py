"""Token ids for random models of 512 tokens or more."""

from __future__ import annotations

import numpy as np

# Long enough for every conv window and for tokens to meet different experts.
PROMPT = [1, *np.random.default_rng(7).integers(14, 512, 24).tolist()]
