"""Where a loss comes from, layer by layer, as the heights of bars."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .localize import EXACT_DB, Location
from .weights import TensorError


@dataclass(frozen=True)
class Bar:
    """One layer; None is what lies outside layers. `share` of the highest bar; `note` is worth a word above it."""

    layer: int | None
    share: float
    title: str
    note: str = ""
    is_marked: bool = False

    @property
    def name(self) -> str:
        return "outside" if self.layer is None else str(self.layer)


def bars_of_loss(location: Location) -> tuple[Bar, ...]:
    """Noise over signal of what each layer adds; the first that drops is marked, and what putting one back recovers
    is noted.
    """
    noise = [0.0 if layer.own_db >= EXACT_DB else 10 ** (-layer.own_db / 20) for layer in location.layers]
    recovered = {recovery.layer: recovery.share for recovery in location.recoveries}
    most = max(noise, default=0.0)
    return tuple(
        Bar(
            layer=layer.layer,
            share=value / most if most else 0.0,
            title=f"layer {layer.layer}: {layer.own_db:.1f} dB, noise {value:.2%} of what it adds",
            note=f"{max(0.0, recovered[layer.layer]):.0%}" if layer.layer in recovered else "",
            is_marked=layer.layer == location.first_drop,
        )
        for layer, value in zip(location.layers, noise, strict=True)
    )


def bars_of_weights(errors: Sequence[TensorError]) -> tuple[Bar, ...]:
    """The error of each layer's worst stored tensor, those outside layers first; `errors` are worst first."""
    worst: dict[int, TensorError] = {}
    for error in errors:
        worst.setdefault(-1 if error.layer is None else error.layer, error)
    found = [worst[layer] for layer in sorted(worst)]
    finite = [error.rel_rms for error in found if error.rel_rms < 1e9]
    most = max(finite, default=0.0)
    return tuple(
        Bar(error.layer, min(1.0, error.rel_rms / most) if most else 0.0, f"{error.where}: {error.rel_rms:.3g}")
        for error in found
    )
