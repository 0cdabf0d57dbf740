"""GGUF files with other metadata or other tensors than their writer gave them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np


def rewritten(
    path: Path, out: Path, *, pairs: Mapping[str, Any], tensors: Mapping[str, np.ndarray] | None = None
) -> Path:
    """The same file by gguf-py's writer, with pairs and float32 tensors in place of its own; None takes one out."""
    reader = gguf.GGUFReader(path)
    fields = {name: field for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    said = {name: (field.contents(), list(field.types)) for name, field in fields.items()}
    kept = {name: found for name, found in said.items() if pairs.get(name, found) is not None}
    writer = gguf.GGUFWriter(out, arch="none")
    writer.kv_data[0].clear()
    for name, (value, types) in kept.items():
        if name not in pairs:
            writer.add_key_value(name, value, types[0], types[-1] if len(types) > 1 else None)
    for name, value in pairs.items():
        if value is not None:
            kind = gguf.GGUFValueType.get_type(value)
            is_list = kind is gguf.GGUFValueType.ARRAY
            writer.add_key_value(name, value, kind, gguf.GGUFValueType.get_type(value[0]) if is_list else None)
    changed = dict(tensors or {})
    for tensor in reader.tensors:
        if tensor.name not in changed:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
        elif changed[tensor.name] is not None:
            writer.add_tensor(tensor.name, changed[tensor.name])
    for name in changed.keys() - {tensor.name for tensor in reader.tensors}:
        writer.add_tensor(name, changed[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return out
