"""What published artifacts of the family lose, by class of quant: where one stands among them, which fails nothing.

Mean KLD against float32 on wikitext-2, 64 chunks of 512 tokens, of its dense models of 230M to 2.6B and of its mixture
of 8B. Another text gives other numbers, so that this places an artifact and judges none.
Source: microsoft/olive-recipes, `LiquidAI-*/` (evaluation tables); Liquid4All/onnx-export, `compare/wikitext.py`.
"""

from __future__ import annotations

from collections.abc import Mapping

from .metrics import Metrics

# By class and whether the model is a mixture. Units: nats.
_PUBLISHED: Mapping[tuple[str, bool], tuple[float, ...]] = {
    ("f16", False): (1.6e-5, 2.2e-5, 4.4e-5, 0.00076, 0.00198, 0.00369, 0.0123),
    ("f16", True): (0.0224,),
    ("q8", False): (0.00167, 0.00173, 0.00196, 0.00206, 0.00289, 0.00328, 0.00843, 0.00896),
    ("q8", True): (0.0086, 0.0256),
    ("q4", False): (0.0988, 0.103, 0.109, 0.114, 0.155, 0.155, 0.165, 0.179, 0.210, 0.283, 0.481, 0.492, 0.979),
    ("q4", True): (0.085, 0.187, 0.2103),
}


def standing(metrics: Metrics | None, class_name: str, *, is_mixture: bool) -> str:
    """`mean KLD 0.12 nats: nearer than 9 of 13 published q4 artifacts (0.0988 … 0.979)`; empty if none is published."""
    known = _PUBLISHED.get((class_name, is_mixture), ())
    if metrics is None or not metrics.finite or not known:
        return ""
    n_further = sum(kld >= metrics.kld_mean for kld in known)
    kind = f"{class_name} artifact{'s' if len(known) > 1 else ''} of {'mixtures' if is_mixture else 'dense models'}"
    spread = f"{min(known):g} … {max(known):g}" if len(known) > 1 else f"{known[0]:g}"
    return f"mean KLD {metrics.kld_mean:.3g} nats: nearer than {n_further} of {len(known)} published {kind} ({spread})"
