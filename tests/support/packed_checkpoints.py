"""Checkpoints whose linear weights a format's own library packed, beside what that library decodes them to."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lfm_convert.graph.dtypes import DType
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph

from .safetensors_files import Tensor, edit_tensors, read_tensors

TYPES = {
    torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64", torch.int32: "I32",
    torch.int8: "I8", torch.uint8: "U8", torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
    torch.float8_e8m0fnu: "F8_E8M0",
}  # fmt: skip
_NUMBERS = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}

# The parts of a weight by the ends of their names, and the float32 values that the library makes of them.
Packed = tuple[dict[str, torch.Tensor], torch.Tensor]
Pack = Callable[[str, torch.Tensor], Packed]


def stored(tensor: torch.Tensor) -> Tensor:
    """As a safetensors file holds it."""
    tensor = tensor.detach().contiguous()
    data = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return Tensor(TYPES[tensor.dtype], tuple(tensor.shape), data)


def weights(folder: Path, *, has_table: bool = False) -> dict[str, torch.Tensor]:
    """The linear weights of a plain checkpoint's layers, and its token table if asked."""
    found = {
        name: torch.frombuffer(bytearray(tensor.data), dtype=_NUMBERS[tensor.dtype]).reshape(tensor.shape)
        for name, tensor in read_tensors(folder / "model.safetensors").items()
        if name.endswith((".weight", "_proj")) and (".layers." in name or has_table)
    }
    return {
        name: value
        for name, value in found.items()
        if value.ndim > 1 and not name.endswith((".conv.conv.weight", ".gate.weight"))
    }


def pack_checkpoint(
    folder: Path,
    pack: Pack,
    settings: dict[str, Any] | None,
    *,
    only: Iterable[str] | None = None,
    has_table: bool = False,
) -> dict[str, torch.Tensor]:
    """Puts packed weights in the place of a folder's; gives what each is decoded to, by its name.

    `pack` gets the name of a module and its weight.
    """
    expected: dict[str, torch.Tensor] = {}
    plain = weights(folder, has_table=has_table)

    def change(tensors: dict[str, Tensor]) -> None:
        for name, weight in plain.items():
            if only is not None and not any(part in name for part in only):
                continue
            module = name.removesuffix(".weight")
            parts, expected[name] = pack(module, weight)
            del tensors[name]
            tensors.update({module + end: stored(part) for end, part in parts.items()})

    edit_tensors(folder / "model.safetensors", change)
    configure(folder, quantization_config=settings)
    return expected


def configure(folder: Path, **fields: Any) -> None:
    """Sets fields of a folder's config; None removes one."""
    path = folder / "config.json"
    config = json.loads(path.read_text()) | fields
    path.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


def check(folder: Path, expected: dict[str, torch.Tensor], *, dtype: DType = DType.BF16) -> WeightGraph:
    """Opens a folder and compares every packed weight, bit for bit, whole and in ranges of odd lengths."""
    graph = open_graph(folder)
    views = {weight.view.name: weight.view for weight in graph.weights()}
    for name, wanted in expected.items():
        view = views[name]
        values = wanted.detach().to(torch.float32).numpy()
        assert view.dtype is dtype, name
        np.testing.assert_array_equal(view.read(), values, err_msg=name, strict=True)
        rows, step = values.reshape(view.n_rows, -1), max(1, view.n_rows // 3 + 1)
        for start in range(0, view.n_rows, step):
            stop = min(start + step, view.n_rows)
            np.testing.assert_array_equal(view.rows(start, stop), rows[start:stop], err_msg=name, strict=True)
    return graph
