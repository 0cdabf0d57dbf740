"""What ExecuTorch holds in memory of a .pte, on the CPU with XNNPACK."""

from __future__ import annotations

from ..running import RunMemory

_FLOAT32_BYTES = 4


def run_memory(size_bytes: int) -> RunMemory:
    """Caches are float32 at any quant. XNNPACK packs matrices into memory of its own, from pages that can go after it."""
    return RunMemory(weights=size_bytes, cache_itemsize=_FLOAT32_BYTES)
