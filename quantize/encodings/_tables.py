"""Values that four-bit codes stand for. Source: llama.cpp `ggml/src/ggml-common.h`, `kvalues_iq4nl`, `kvalues_fp4`."""

from __future__ import annotations

IQ4 = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)
# Twice the values of the 4-bit float E2M1; codes 8-15 are their negatives.
E2M1 = (0, 1, 2, 3, 4, 6, 8, 12)
