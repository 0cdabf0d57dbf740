"""The conversions whose bytes are kept: every quant of the bundled models, options, and checkpoints of odd form."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.convert.pipeline import open_model
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.gguf_file.tensor_names import tensor_name
from lfm_convert.quantize.imatrix import importance_bytes
from lfm_convert.targets.target import get_target
from support.checkpoints import dense_25_config, dense_config, lfm3_config, make_checkpoint, moe_config

TARGETS = ("gguf", "onnx", "mlx", "executorch", "coreml", "compressed-tensors")
IMATRIX = "IMATRIX"  # in options: the path of a matrix made for the model
_BUNDLED = ("bundled:dense", "bundled:moe", "bundled:lfm3")
# llama.cpp has no bias in the short convolution, mlx-lm no head of its own. Of ExecuTorch's LFM3 two quants are kept.
_LEFT_OUT = {("gguf", "conv-bias"), ("mlx", "untied-head"), ("executorch", "bundled:lfm3")}

# Checkpoints of one oddity each; the wide ones have rows of 256, which the K-quants need.
_ODD: dict[str, Callable[[Path], Path]] = {
    "fused-experts": lambda f: make_checkpoint(f, moe_config(hidden_size=256), fused_experts=True),
    "untied-head": lambda f: make_checkpoint(f, dense_25_config(hidden_size=256, tie_word_embeddings=False)),
    "scaled-router": lambda f: make_checkpoint(f, moe_config(routed_scaling_factor=2.5)),
    "conv-bias": lambda f: make_checkpoint(f, dense_config(conv_bias=True)),
    "float16": lambda f: make_checkpoint(f, dense_config(), dtype="float16"),
    "lfm3": lambda f: make_checkpoint(f, lfm3_config(hidden_size=256, intermediate_size=512)),
    "float32-sharded": lambda f: make_checkpoint(f, moe_config(), dtype="float32", shards=3),
}
# Quants of a grammar, beside the policies that are listed.
_FURTHER = {
    "mlx": ("2bit", "3bit-g128-e4", "5bit-g32-e6", "mixed_4_8-g32", "nvfp4-e6",
            *(f"{bits}bit-g{group}" for bits in (8, 6, 5, 4, 3) for group in (32, 128))),
}  # fmt: skip
_ODD_QUANTS = {
    "gguf": ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q4_K_M", "Q4_0", "IQ4_XS"),
    "onnx": ("fp32", "fp16", "q8", "q4", "q4f16"),
    "mlx": ("bf16", "8bit", "4bit", "mxfp4"),
    "executorch": ("fp32", "8da4w-emb8"),
    "coreml": ("fp16", "int8", "int4", "int4-pal"),
    "compressed-tensors": ("W4A16", "W4A16-g32-asym", "W8A8", "FP8_BLOCK", "NVFP4A16"),
}
# Options that change the stored numbers or the program, and the quants that show it.
_OPTIONS: dict[str, Sequence[tuple[Mapping[str, Any], Sequence[str]]]] = {
    "gguf": (
        ({"refine": True}, ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_NL")),
        ({"imatrix": IMATRIX}, ("Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K", "IQ4_XS")),
        ({"split_max_size": 1_000_000}, ("Q4_K_M",)),
    ),
    "onnx": (
        ({"onnx_moe": "qmoe"}, ("q4", "q8")),
        ({"onnx_caches": "whole"}, ("q4", "q4f16", "fp32")),
        ({"imatrix": IMATRIX}, ("q4", "q4f16", "q8")),
    ),
    "mlx": (
        ({"refine": True}, ("4bit", "3bit", "mxfp4")),
        ({"refine": True, "imatrix": IMATRIX}, ("4bit", "3bit", "mxfp4")),
        ({"mlx_model_file": True}, ("4bit", "bf16")),
    ),
    "executorch": (({"et_moe": "moe_ffn"}, ("8da4w",)), ({"external_weights": True}, ("8da4w",))),
    "compressed-tensors": (({"max_shard_size": 1_000_000}, ("W4A16",)),),
    "coreml": (({"coreml_state": "all"}, ("int8",)), ({"context": 512, "chunk": 32}, ("int4",))),
}
# The model that has what an option is about.
_MEANT_FOR = {
    "onnx_moe": "bundled:moe", "et_moe": "bundled:moe", "onnx_caches": "bundled:lfm3", "mlx_model_file": "bundled:lfm3",
}  # fmt: skip


@dataclass(frozen=True)
class Case:
    """Quants of one model for one target with one set of options. `is_slow`: takes minutes, an export each quant."""

    target: str
    model: str
    quants: tuple[str, ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """The model, then the options that differ from the target's own."""
        words = [key if value in (True, IMATRIX) else f"{key}={value}" for key, value in self.options.items()]
        return " ".join([self.model, *words])

    @property
    def is_slow(self) -> bool:
        return self.target == "executorch"

    def source(self, scratch: Path) -> str:
        """What `convert` takes: the bundled model's name, or the folder of a checkpoint made in scratch."""
        if self.model.startswith("bundled:"):
            return self.model
        folder = scratch / self.model
        return str(folder if folder.is_dir() else _ODD[self.model](folder))

    def arguments(self, scratch: Path) -> dict[str, Any]:
        """The options, with a matrix of fixed numbers in place of IMATRIX."""
        made = {key: _imatrix(self.source(scratch), scratch) if v == IMATRIX else v for key, v in self.options.items()}
        return dict(made)


def cases() -> list[Case]:
    """All of them, targets in order."""
    found = []
    for target in TARGETS:
        listed = (policy.name for policy in get_target(target).policies)
        every = tuple(dict.fromkeys((*listed, *_FURTHER.get(target, ()))))
        for model in (model for model in _BUNDLED if (target, model) not in _LEFT_OUT):
            found.append(Case(target, model, every))
            for options, quants in _OPTIONS[target]:
                if {_MEANT_FOR.get(key, model) for key in options} == {model}:
                    found.append(Case(target, model, tuple(quants), options))
        if target == "executorch":  # the one program with rings in it
            found.append(Case(target, "bundled:lfm3", ("fp32", "8da4w")))
        found += [Case(target, model, _ODD_QUANTS[target]) for model in _ODD if (target, model) not in _LEFT_OUT]
    return found


def _imatrix(source: str, scratch: Path) -> str:
    """Importance drawn from a seed: measured importance depends on the CPU's matrix products."""
    path = scratch / f"{Path(source.replace(':', '-')).name}.imatrix.gguf"
    if path.exists():
        return str(path)
    graph = open_graph(Path(source)) if Path(source).is_dir() else open_model(source)
    generator, uses = np.random.Generator(np.random.SFC64(14)), {}
    for weight in graph.weights():
        if len(weight.shape) > 1:
            n = weight.shape[0] if len(weight.shape) == 3 else 1
            sums = np.square(generator.standard_normal((n, weight.shape[-1]), np.float32)) * np.float32(64)
            uses[tensor_name(weight.address, graph.config.family)] = Use(sums, np.full(n, 64, np.float32))
    path.write_bytes(importance_bytes(uses, datasets=("seed 14",), n_chunks=1, chunk_size=512))
    return str(path)
