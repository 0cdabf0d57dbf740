"""What the pieces of an ExecuTorch program take in bytes, beside the numbers that plans count with.

    python benchmarks/executorch_pieces.py [--quant 8da4w] [PIECE ...]

For a new release of executorch: each piece is measured as the difference between two exports of small models of which
one has more of it, less what the plan says of everything else in that difference. Some minutes in all.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.executorch.file_size import PIECES
from lfm_convert.targets.executorch.fused import MOE_FORMS
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import get_target
from support.checkpoints import lfm3_config, make_checkpoint, moe_config
from support.family_configs import PUBLISHED, small
from support.family_models import make_model

_KINDS = {"c": "conv", "f": "full_attention", "s": "sliding_attention"}

# Layers by letter, m a mixture of LFM2's, or a published model made small, and what the config or the target's options
# say otherwise.
Model = tuple[str, tuple[tuple[str, Any], ...]]


def _model(layers: str, **fields: Any) -> Model:
    return layers, tuple(fields.items())


# Piece: a model that has more of it, one that has less, how many more. Each builds upon those above it.
_PAIRS: dict[str, tuple[Model, Model, int]] = {
    "conv": (_model("ccf"), _model("cf"), 1),
    "tap": (_model("cf", conv_L_cache=7), _model("cf", conv_L_cache=2), 5),
    "attention": (_model("cff"), _model("cf"), 1),
    "windowed": (_model("css"), _model("cs"), 1),
    "window": (_model("cs"), _model("cf"), 1),
    "rope": (_model("cfs"), _model("css"), 1),
    "gate": (_model("cff"), _model("cff", use_attention_gate=False), 2),
    "post_norm": (_model("cff"), _model("cff", use_sandwich_norm=False), 6),
    "bias": (_model("cff", attention_bias=True, conv_bias=True), _model("cff"), 13),
    "moe": (_model("mm"), _model("m"), 1),
    "expert": (_model("m", num_experts=16), _model("m"), 8),
    "gelu": (_model("gemma-3-270m"), _model("gemma-3-270m", hidden_activation="silu"), 4),
    "rest": (_model("Phi-4-mini", num_hidden_layers=6), _model("Phi-4-mini", num_hidden_layers=3), 3),
    "turn_part": (_model("Phi-4-mini", num_hidden_layers=3), _model("Llama-3.2-1B", num_hidden_layers=3), 1),
    "fused": (_model("mm", et_moe="moe_ffn"), _model("m", et_moe="moe_ffn"), 1),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quant", default="8da4w")
    parser.add_argument("pieces", nargs="*", metavar="PIECE", help=", ".join(_PAIRS))
    arguments = parser.parse_args()
    for piece in arguments.pieces or _PAIRS:
        *models, n = _PAIRS[piece]
        more, less = (_excess(model, arguments.quant) for model in models)
        print(f"{piece:10} counted {PIECES[piece]:6}, measured {PIECES[piece] + (more - less) / n:8.0f}", flush=True)


@cache
def _excess(model: Model, quant: str) -> int:
    """Bytes of a model's file beyond what its plan says."""
    layers, fields = model
    config = dict(fields)
    options = {"context": 48, "et_moe": config.pop("et_moe", MOE_FORMS[0])}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if layers in PUBLISHED:
            checkpoint = make_model(folder / "model", small(layers, **config))
        else:
            checkpoint = make_checkpoint(folder / "model", _config(layers, config))
        graph = open_graph(checkpoint)
        target = get_target("executorch").with_options(options)
        plan = target.plan(graph, quant)
        target.write(plan, graph, folder, Execution())
        return (folder / plan.main_file).stat().st_size - plan.total_bytes


def _config(layers: str, config: dict[str, Any]) -> dict[str, Any]:
    n = len(layers)
    if "m" in layers:
        return moe_config(hidden_size=64, num_hidden_layers=n + 1, attention=range(1, n + 1), **config)
    kinds = [_KINDS[letter] for letter in layers]
    return lfm3_config(hidden_size=64, num_hidden_layers=n, layer_types=kinds, intermediate_size=96, **config)


if __name__ == "__main__":
    main()
