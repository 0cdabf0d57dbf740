"""`ORTModelForCausalLM`: an ONNX folder under Hugging Face's `generate`, `pipeline` and streamers.

from lfm_convert.targets.onnx.optimum import ORTModelForCausalLM
model = ORTModelForCausalLM.from_pretrained("path/to/MODEL-ONNX", quant="q4")
"""

from __future__ import annotations

from ....graph.errors import needs_extra

with needs_extra("optimum", "ORTModelForCausalLM"):
    from .causal_lm import ORTModelForCausalLM

__all__ = ["ORTModelForCausalLM"]
