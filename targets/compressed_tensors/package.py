"""The files beside the weights: what Transformers, vLLM and SGLang read.

Source: transformers `configuration_utils.py`; vLLM's models; llm-compressor
`transformers/compression/compressed_tensors_utils.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...graph.config import CONFIG_FILE
from ...graph.graph import WeightGraph
from ...graph.roles import Trait
from ...quantize.policies.compressed_tensors import CtQuant
from ..hub_folder import base_config, common_files, json_bytes, licence_lines
from .schemes import FIELD, StoredModule, quantization_config
from .stored import Stored

_CARD = """\
---
{front_matter}
---

# {title}

{source}, stored as {quant} for Transformers, vLLM and SGLang by lfm-convert.

```
pip install transformers compressed-tensors torch
```

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model, tokenizer = AutoModelForCausalLM.from_pretrained("."), AutoTokenizer.from_pretrained(".")
prompt = tokenizer("Hello", return_tensors="pt")
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=32)[0]))
```
"""
_HEAD = "lm_head"
# What is multiplied by a matrix that a reader could take for one of a layer, and stays as it is.
_QUANTISED, _IGNORED = (Trait.MATRIX, Trait.EXPERTS), (Trait.ROUTER,)
# Fields that are true of a checkpoint's own folder only.
_LEFT_OUT = ("_name_or_path", "full_attn_idxs")


def package_files(graph: WeightGraph, *, title: str, quant: CtQuant, stored: Sequence[Stored]) -> dict[str, bytes]:
    """Config, generation config, tokenizer, chat template, license and model card, by file name."""
    modules = [StoredModule(e.module, e.choice.encoding) for e in stored if e.weight.role.trait in _QUANTISED]
    routers = [each.module for each in stored if each.weight.role.trait in _IGNORED]
    quantization = quantization_config(modules, ignored=[_HEAD, *routers], rounds=quant.arithmetic != "float32")
    config = json_bytes({**_config(graph), FIELD: quantization})
    return {CONFIG_FILE: config, **common_files(graph), "README.md": _card(graph, title, quant).encode()}


def _config(graph: WeightGraph) -> dict[str, Any]:
    """The checkpoint's config, with every field that transformers' class has today, and those of others beside."""
    config = graph.config
    written = {key: value for key, value in base_config(graph).items() if key not in _LEFT_OUT}
    served = config.family.servers.fields(config) if config.family.servers else {}
    fields = {**config.family.hub_fields(config), **served, "architectures": [config.family.architecture]}
    return dict(sorted((written | fields).items()))


def _card(graph: WeightGraph, title: str, quant: CtQuant) -> str:
    fields = ["library_name: transformers", "pipeline_tag: text-generation", *licence_lines(graph.assets)]
    fields += ["tags:", "- compressed-tensors"]
    return _CARD.format(front_matter="\n".join(fields), title=title, source=graph.name, quant=quant.name)
