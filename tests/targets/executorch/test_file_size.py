"""What a plan says of a .pte's size, from the config alone, is true within 1 %: of the program, too, which small models show."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.executorch.file_size import PIECES
from lfm_convert.targets.target import get_target
from support.checkpoints import dense_config, lfm3_config, make_checkpoint, moe_config

from .conftest import Exported, export

CONV, FULL, SLIDING = "conv", "full_attention", "sliding_attention"
# Models unlike those that the pieces were measured on; of each the program is a quarter of the file or more.
ODD: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {
    "lfm3": (
        lfm3_config(
            hidden_size=96, num_hidden_layers=7, layer_types=[SLIDING, CONV, FULL, CONV, SLIDING, FULL, CONV],
            num_attention_heads=6, num_key_value_heads=3, head_dim=16, sliding_window=8, conv_L_cache=5, vocab_size=700,
        ),
        "8da4w",
        {"context": 64},
    ),
    "lfm3-without": (
        lfm3_config(
            hidden_size=32, num_hidden_layers=5, use_attention_gate=False, use_sandwich_norm=False,
            attention_bias=True, conv_bias=True, num_key_value_heads=1, tie_word_embeddings=False, sliding_window=3,
        ),
        "fp32",
        {},
    ),
    "lfm3-of-two-files": (
        lfm3_config(hidden_size=32, num_hidden_layers=5, use_attention_gate=False, intermediate_size=32, head_dim=32),
        "8da8w",
        {"external_weights": True},
    ),
    "lfm2": (
        dense_config(
            hidden_size=160, num_hidden_layers=6, attention=(0, 3), conv_L_cache=4, conv_bias=True,
            num_attention_heads=5, num_key_value_heads=1,
        ),
        "8da4w-emb8",
        {},
    ),
    "mixture": (
        moe_config(
            hidden_size=96, num_hidden_layers=4, attention=(2,), num_experts=12, num_experts_per_tok=3,
            num_dense_layers=2, use_expert_bias=False, moe_intermediate_size=96,
        ),
        "8da4w",
        {},
    ),
    "mixture-fused": (
        moe_config(hidden_size=64, num_hidden_layers=5, attention=(2,), num_experts=6, moe_intermediate_size=32),
        "8da4w",
        {"et_moe": "moe_ffn", "external_weights": True},
    ),
}  # fmt: skip


def refuse_other_sizes(found: Exported) -> None:
    """Each file of its own."""
    sizes = [path.stat().st_size for path in found.artifact.files]
    assert found.predicted_bytes == pytest.approx(sizes, rel=0.01)


@pytest.mark.parametrize(
    ("kind", "quant"), [("dense", "fp32"), ("moe", "8da4w"), pytest.param("lfm3", "8da4w", marks=pytest.mark.slow)]
)
def test_bundled_models(kind: str, quant: str, exported: Callable[..., Exported]) -> None:
    found = exported(kind, quant)
    refuse_other_sizes(found)
    assert not list(found.artifact.folder.glob("*.weights"))


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD)
def test_odd_models(name: str, tmp_path: Path) -> None:
    config, quant, options = ODD[name]
    refuse_other_sizes(
        export(open_graph(make_checkpoint(tmp_path / "model", config)), quant, tmp_path / "out", **options)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lfm2-350m", "lfm2-1.2b", "lfm2.5-2.6b", "lfm3-1.7b"])
def test_real_widths(name: str, published_configs: Path, tmp_path: Path) -> None:
    """A layer of each kind of every dense width."""
    config = json.loads((published_configs / f"{name}.json").read_bytes())
    layer_types = [CONV, FULL, SLIDING][: 3 if config["model_type"] == "lfm3" else 2]
    config.pop("full_attn_idxs", None)
    config = {"vocab_size": 128_000} | config  # LFM3 leaves out its class's default
    config |= {"num_hidden_layers": len(layer_types), "layer_types": layer_types}
    refuse_other_sizes(export(open_graph(make_checkpoint(tmp_path / name, config)), "8da4w", tmp_path / "out"))


def test_a_window_is_a_ring_only_within_the_context(published: Callable[..., Any]) -> None:
    """A cache as long as the window takes another program than one as long as the context, and one set of masks."""
    graph = published("lfm3-1.7b")

    def planned(context: int) -> int:
        return get_target("executorch").with_options({"context": context}).plan(graph, "8da4w").total_bytes

    n_sliding = 5
    assert planned(257) - planned(256) == PIECES["window"] + n_sliding * PIECES["windowed"]
    assert planned(256) == planned(2) and planned(257) == planned(4096)
