"""What compressed-tensors itself stores of matrices, their ranges taken by llm-compressor's observer of weights, where it is installed."""

from __future__ import annotations

import importlib
import importlib.machinery
import sys
import types
from typing import Any

import numpy as np


def stored(preset: str, *matrices: Any, **weights: Any) -> list[dict[str, np.ndarray]]:
    """The tensors of each of some matrices [N, K], torch's, as bytes; those run as one share a global scale.

    `weights` are changed in the preset's arguments.
    """
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.compressors.format import infer_module_format
    from compressed_tensors.quantization import initialize_module_for_quantization, preset_name_to_scheme

    scheme = preset_name_to_scheme(preset, ["Linear"])
    scheme = scheme.model_copy(update={"weights": scheme.weights.model_copy(update=weights)})
    if preset.startswith(("NVFP4", "MXFP4")):  # input scales of activations are calibrated: not weights
        scheme = scheme.model_copy(update={"input_activations": None})
    modules = []
    for matrix in matrices:
        module = torch.nn.Linear(matrix.shape[1], matrix.shape[0], bias=False, dtype=matrix.dtype)
        module.weight.data.copy_(matrix)
        initialize_module_for_quantization(module, scheme, force_zero_point=not scheme.weights.symmetric)
        modules.append(module)
    observers = _observe(scheme.weights, modules)
    format_ = infer_module_format(torch.nn.Linear, scheme)
    found = []
    for module, observer in zip(modules, observers, strict=True):
        for key, value in observer.get_qparams().items():
            name = "weight_global_scale" if key == "global_scale" else f"weight_{key}"
            if value is not None and hasattr(module, name):
                getattr(module, name).data.copy_(value)
        state = BaseCompressor.get_value_from_registry(format_.value).compress(dict(module.state_dict()), scheme)
        found.append({name: _bytes(tensor) for name, tensor in state.items()})
    return found


def _observe(args: Any, modules: list[Any]) -> list[Any]:
    if importlib.machinery.PathFinder.find_spec("llmcompressor") is None:
        return [_Observer(args, modules, module) for module in modules]
    observers, fusion = (_observer_module(name) for name in ("min_max", "fusion"))
    made = [observers.MemorylessMinMaxObserver(base_name="weight", args=args) for _ in modules]
    fusion.FusionHandler.fuse(zip(made, modules, strict=True))
    for observer, module in zip(made, modules, strict=True):
        observer(module.weight.data)
    return made


class _Observer:
    """What llm-compressor's gives, where it is not installed: the library's own parameters of the ranges of groups."""

    def __init__(self, args: Any, modules: list[Any], module: Any) -> None:
        self._args = args
        self._matrices, self._own = [each.weight.data for each in modules], module.weight.data

    def get_qparams(self) -> dict[str, Any]:
        from compressed_tensors.quantization.utils import calculate_qparams, generate_gparam

        scale = None
        if self._args.strategy == "tensor_group":
            size = max(matrix.abs().max() for matrix in self._matrices).reshape(1)
            scale = generate_gparam(-size, size)
        groups = self._groups()
        low, high = groups.amin(dim=-1), groups.amax(dim=-1)
        scales, zeros = calculate_qparams(low, high, self._args, global_scale=scale)
        return {"scale": scales, "zero_point": zeros, "global_scale": scale}

    def _groups(self) -> Any:
        """Elements that share a scale on the last axis, scales on the others."""
        import torch

        if self._args.strategy == "channel":
            return self._own.unsqueeze(1)
        if self._args.strategy != "block":
            return self._own.unflatten(-1, (-1, self._args.group_size))
        height, width = self._args.block_structure
        rest = -self._own.shape[0] % height
        padded = torch.nn.functional.pad(self._own, (0, 0, 0, rest))
        return padded.reshape(-1, height, padded.shape[1] // width, width).transpose(1, 2).flatten(2)


def _observer_module(name: str) -> Any:
    """A file of llm-compressor's observers without the packages above it, which import data sets."""
    for package in ("llmcompressor", "llmcompressor.observers"):
        if package not in sys.modules:
            spec = importlib.machinery.PathFinder.find_spec(package.rpartition(".")[2], _path(package))
            sys.modules[package] = bare = types.ModuleType(package)
            bare.__path__ = list(spec.submodule_search_locations)
    return importlib.import_module(f"llmcompressor.observers.{name}")


def _path(package: str) -> list[str] | None:
    above = package.rpartition(".")[0]
    return list(sys.modules[above].__path__) if above else None


def _bytes(tensor: Any) -> np.ndarray:
    import torch

    found = tensor.detach().contiguous()
    return found.reshape(-1).view(torch.uint8).numpy().copy()
