"""Runs a folder in transformers with compressed-tensors, on the CPU and in float32.

In 16 bits the CPU's sums would hide what weights do. transformers decodes experts in the type that their scales are stored
in, whatever the model's is, so that scales are widened first.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import compressed_tensors  # noqa: F401  # so that it is named where it is missing
import numpy as np
import torch
import transformers
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, DynamicCache
from transformers.integrations.compressed_tensors import CompressedTensorsDequantize
from transformers.quantizers.quantizer_compressed_tensors import CompressedTensorsHfQuantizer

from ...graph.dtypes import Float32
from ...graph.errors import InputError
from ...graph.source.stops import as_ids
from ...quantize.encodings.ct_base import SCALE
from ..target import WatchedRunner


class TransformersRunner(WatchedRunner):
    """One model with its cache."""

    batches: Sequence[str] = ("left",)

    def __init__(self, folder: Path, *, threads: int, decodes_first: bool) -> None:
        """`decodes_first` decodes weights while they are loaded, which leaves no rounding of activations."""
        torch.set_num_threads(threads)
        logging: Any = transformers.utils.logging
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        quantizer: Any = CompressedTensorsHfQuantizer
        quantizer.get_load_operations = lambda self: {"dequantize": _InFloat32}
        self._threads = threads
        more = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if decodes_first else {}
        try:
            model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **more)
            model.eval()
            if not decodes_first:
                model.hf_quantizer.compressor.decompress_model(model)
        except Exception as error:  # the libraries raise their own kinds
            raise InputError(f"{folder}: transformers refuses it: {type(error).__name__}: {error}") from None
        self._model: Any = torch.nn.Module.float(model)  # what was decoded to bfloat16; the model's own method refuses
        self.reset()

    @property
    def backend(self) -> str:
        names = ", ".join(f"{name} {version(name)}" for name in ("transformers", "compressed-tensors"))
        return f"{names} CPU, {self._threads} threads, float32"

    def reset(self) -> None:
        self._cache = self._new_cache()

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._model.config)

    def another(self) -> TransformersRunner:
        """Caches lie outside the model, so that one serves any number of conversations."""
        other = copy.copy(self)
        other.reset()
        return other

    def stops(self) -> dict[str, list[int]]:
        """As `generate` reads them."""
        return {"transformers": list(as_ids(self._model.generation_config.eos_token_id))}

    def extend(self, token_ids: Sequence[int]) -> Float32:
        return self._run([list(token_ids)], self._cache)[0]

    def _run(self, rows: list[list[int]], cache: DynamicCache, **more: Any) -> Float32:
        with torch.inference_mode():
            found = self._model(torch.tensor(rows), past_key_values=cache, use_cache=True, **more)
        logits: Float32 = found.logits.numpy()
        return logits

    def batch(self, prompts: Sequence[Sequence[int]], way: str) -> list[Float32]:
        """Rows of zeros padded on the left, as `generate` has them; each is continued by its last token."""
        longest = max(map(len, prompts))
        gaps = [longest - len(prompt) for prompt in prompts]
        mask = torch.tensor([[0] * gap + [1] * (longest - gap) for gap in gaps])
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        cache = self._new_cache()
        rows = [[0] * gap + list(prompt[:-1]) for gap, prompt in zip(gaps, prompts, strict=True)]
        first = self._run(rows, cache, attention_mask=mask[:, :-1], position_ids=positions[:, :-1])
        ends = [list(prompt[-1:]) for prompt in prompts]
        last = self._run(ends, cache, attention_mask=mask, position_ids=positions[:, -1:])
        found = np.concatenate([first, last], axis=1)
        return [row[gap:] for gap, row in zip(gaps, found, strict=True)]

    @contextmanager
    def watching(self) -> Iterator[Callable[[int], dict[int, NDArray[np.int64]] | None]]:
        """What each mixture hands to its experts, seen before they run."""
        chosen: dict[int, NDArray[np.int64]] = {}
        blocks = ((i, block) for i, layer in enumerate(self._model.model.layers) for block in layer.children())
        hooks = [
            block.experts.register_forward_pre_hook(_keeping(chosen, i))
            for i, block in blocks
            if hasattr(block, "experts")
        ]
        try:
            yield lambda n: {layer: experts[-n:] for layer, experts in chosen.items()} or None
        finally:
            for hook in hooks:
                hook.remove()


def _keeping(chosen: dict[int, NDArray[np.int64]], layer: int) -> Any:
    """A hook that keeps which experts each token of the last call was sent to: [n, top_k]."""

    def keep(module: Any, arguments: tuple[Any, ...]) -> None:
        ids = arguments[1].numpy().astype(np.int64)
        chosen[layer] = ids.reshape(-1, ids.shape[-1])

    return keep


class _InFloat32(CompressedTensorsDequantize):
    """Decodes weights with scales in float32."""

    def convert(self, input_dict: Mapping[str, Any], *arguments: Any, **more: Any) -> dict[str, Any]:
        widened = {name: _widened(value) if SCALE in name else value for name, value in input_dict.items()}
        found: dict[str, Any] = super().convert(widened, *arguments, **more)
        return found


def _widened(value: Any) -> Any:
    """Tensors, or lists of them, in float32; exponents of powers of two stay."""
    if isinstance(value, list):
        return [_widened(each) for each in value]
    return value.float() if value.dtype in (torch.bfloat16, torch.float16) else value
