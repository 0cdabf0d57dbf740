"""Small random models of any family, made and saved by transformers itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .bpe import write_tokenizer
from .family_configs import Config

_DEVIATION, _GAIN_DEVIATION = 0.12, 0.2


def make_model(folder: Path, config: Config, *, seed: int = 0, as_saved: bool = False, tokenizer: bool = True) -> Path:
    """Writes a checkpoint folder and returns it: weights drawn, so that attention is far from even and no gain is one.

    Its config is spelled as given, which is how the published ones are; `as_saved` as transformers 5 saves it.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    own: dict[str, Any] = json.loads(json.dumps(config))
    kind = own.pop("model_type")
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **own), attn_implementation="eager")
    dtype = getattr(torch, config["torch_dtype"])
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith(("norm.weight", "layernorm.weight")):
                parameter.add_(torch.randn_like(parameter) * _GAIN_DEVIATION)
            else:
                parameter.copy_(torch.randn_like(parameter) * _DEVIATION)
    model.to(dtype).save_pretrained(folder)
    if not as_saved:
        (folder / "config.json").write_text(json.dumps(config, indent=2))
    if tokenizer:
        write_tokenizer(folder)
    return folder
