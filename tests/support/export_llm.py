"""Upstream's own export of a dense LFM2: `export_llm` and the files it wants.

subprocess.run(export_llm_command(checkpoint, scratch, "peer.pte", context=512), check=True)
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from lfm_convert.graph.blocks import Attention, Dense
from lfm_convert.graph.source.config_file import load_config

_MODULE = "executorch.extension.llm.export.export_llm"
_CONVERT = (
    "import sys; from executorch.examples.models.lfm2.convert_weights import convert_weights as c; c(*sys.argv[1:])"
)
_OPTIONS = (
    "++base.model_class=lfm2_350m", "++model.use_kv_cache=true", "++model.use_sdpa_with_kv_cache=true",
    "++model.dtype_override=fp32", "++backend.xnnpack.enabled=true", "++backend.xnnpack.extended_ops=true",
)  # fmt: skip
# 8-bit activations, 4-bit weights and token table in groups of 32, without HQQ, its slower scale search.
QUANTIZED = (
    "++quantization.qmode=8da4w", "++quantization.group_size=32", "++quantization.embedding_quantize='4,32'",
    "++quantization.use_hqq=false",
)  # fmt: skip


def export_llm_command(
    checkpoint: Path, scratch: Path, path: Path, *, context: int, options: Sequence[str] = ()
) -> list[str]:
    """Converts the weights of a folder with one safetensors file; returns the command that writes `path` from them."""
    weights, params = scratch / "export_llm.pth", scratch / "export_llm.json"
    subprocess.run([sys.executable, "-P", "-c", _CONVERT, checkpoint, weights], check=True, stdout=subprocess.DEVNULL)
    params.write_text(json.dumps(_params(checkpoint)))
    limits = (f"++export.max_seq_length={context}", f"++export.max_context_length={context}")
    files = (f"++base.checkpoint={weights}", f"++base.params={params}", f"++export.output_name={path}")
    return [sys.executable, "-P", "-m", _MODULE, *_OPTIONS, *options, *limits, *files]


def _params(checkpoint: Path) -> dict[str, object]:
    """The config as upstream's `config/lfm2_350m_config.json` spells it."""
    config = load_config(checkpoint)
    attention, dense = config.first(Attention), config.first(Dense)
    assert attention is not None and attention.rope is not None and dense is not None
    return {
        "dim": config.hidden_size,
        "ffn_dim_multiplier": 1,
        "hidden_dim": dense.size,
        "n_heads": attention.n_heads,
        "n_kv_heads": attention.n_kv_heads,
        "n_layers": config.n_layers,
        "norm_eps": config.norm_eps,
        "rope_theta": attention.rope.theta,
        "vocab_size": config.vocab_size,
        "use_scaled_rope": False,
        "use_hf_rope": True,
        "use_qk_norm": True,
        "qk_norm_before_rope": True,
        "layer_types": config.family.hub_fields(config)["layer_types"],
    }
