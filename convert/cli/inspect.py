"""`lfm-convert inspect PATH`: what a checkpoint or an artifact holds."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .. import pipeline
from ..errors import InputError
from ..manifest import load_manifest
from ..model.config import CONFIG_FILE, Operator
from ..model.graph import WeightGraph
from ..model.lfm2 import open_graph
from ..units import format_size
from .console import Json, output, print_json


def inspect(
    path: Annotated[
        Path,
        typer.Argument(help="Checkpoint folder, GGUF or artifact file, or folder of artifacts.", show_default=False),
    ],
    as_json: Json = False,
) -> int:
    """Show what a checkpoint or an artifact holds."""
    if not path.exists():
        raise InputError(f"{path}: not found")
    if path.suffix == ".gguf" and path.is_file():
        found = _gguf(path)
        print_json(found) if as_json else _show(found)
        return 0
    is_checkpoint = path.is_dir() and load_manifest(path) is None
    if is_checkpoint and not (path / CONFIG_FILE).is_file():
        raise InputError(f"{path}: holds neither {CONFIG_FILE} nor lfm-convert.json")
    found = _checkpoint(open_graph(path)) if is_checkpoint else _artifacts(path)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _checkpoint(graph: WeightGraph) -> dict[str, Any]:
    config = graph.config
    roles: Counter[tuple[str, str]] = Counter()
    for weight in graph.weights():
        roles[weight.role.value, weight.view.dtype.value] += weight.view.n_rows * weight.view.n_cols
    return {
        "kind": "checkpoint",
        "name": graph.name,
        "model_type": config.model_type,
        "parameters": graph.n_parameters,
        "layers": config.n_layers,
        "attention_layers": list(config.attention_layers),
        "conv_layers": sum(op is Operator.SHORT_CONV for op in config.operators),
        "hidden_size": config.hidden_size,
        "heads": [config.n_heads, config.n_kv_heads],
        "experts": [config.moe.n_experts, config.moe.top_k] if config.moe else None,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "rope_theta": config.rope_theta,
        "tied": graph.is_tied,
        "tokens": graph.tokenizer.n_tokens if graph.tokenizer else None,
        "roles": [{"role": role, "dtype": dtype, "parameters": n} for (role, dtype), n in roles.items()],
        "notes": list(graph.notes),
    }


def _gguf(path: Path) -> dict[str, Any]:
    """Any GGUF file, of ours or not: metadata with lists as their length, and tensors and bytes by type."""
    from ...targets.gguf.reader import read_gguf, tensor_nbytes

    file = read_gguf(path)
    types: dict[str, list[int]] = {}
    for tensor in file.tensors:
        types.setdefault(tensor.encoding, []).append(tensor_nbytes(tensor))
    return {
        "kind": "gguf",
        "size_bytes": path.stat().st_size,
        "tensors": len(file.tensors),
        "types": [{"type": name, "tensors": len(sizes), "bytes": sum(sizes)} for name, sizes in types.items()],
        "metadata": {
            key: f"{len(value)} items" if isinstance(value, list) else value for key, value in file.metadata.items()
        },
    }


def _artifacts(path: Path) -> dict[str, Any]:
    rows = []
    for artifact in pipeline.find_artifacts(path):
        encodings: Counter[str] = Counter()
        for tensor in artifact.entry["tensors"]:
            encodings[tensor["encoding"]] += tensor["bytes"]
        checked = artifact.entry.get("validation") or {}
        rows.append(
            {
                "path": str(artifact.path),
                "target": artifact.target,
                "quant": artifact.quant,
                "size_bytes": artifact.size_bytes,
                "tensors": len(artifact.entry["tensors"]),
                "encodings": dict(encodings),
                "verdict": checked.get("verdict"),
            }
        )
    return {"kind": "artifacts", "artifacts": rows}


def _show(found: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, show_header=found["kind"] == "artifacts")
    if found["kind"] == "gguf":
        table.add_row("tensors", str(found["tensors"]))
        for each in found["types"]:
            table.add_row(each["type"], f"{each['tensors']} tensors, {format_size(each['bytes'])}")
        for key, value in found["metadata"].items():
            table.add_row(key, str(value).partition("\n")[0][:120])
    elif found["kind"] == "checkpoint":
        for key, value in found.items():
            if key == "roles":
                value = "\n".join(f"{r['role']} {r['dtype']} {r['parameters']:,}" for r in value)
            elif key == "notes":
                value = "\n".join(value)
            table.add_row(key, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    else:
        for heading in ("path", "target", "quant", "size", "tensors", "encodings", "verdict"):
            table.add_column(heading)
        for row in found["artifacts"]:
            parts = ", ".join(f"{name} {format_size(n)}" for name, n in row["encodings"].items())
            size = format_size(row["size_bytes"])
            verdict = row["verdict"] or "not validated"
            table.add_row(row["path"], row["target"], row["quant"], size, str(row["tensors"]), parts, verdict)
    output.print(table)
