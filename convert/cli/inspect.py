"""`lfm-convert inspect PATH`: what a checkpoint or an artifact holds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from ...graph.adapters.adapter import Adapting
from ...graph.adapters.merging import merge_adapters
from ...graph.blocks import Attention, Mixture, ShortConv
from ...graph.config import CONFIG_FILE
from ...graph.errors import InputError
from ...graph.graph import WeightGraph
from ...graph.opening import open_graph
from ...graph.source.weight_files import has_weights, instead_hint, refuse_adapter_alone
from ...graph.units import format_size
from ...targets.target import Artifact, get_target
from ...validate.tables import print_rows
from ..artifacts import find_artifacts, listed_artifacts, recognised_artifacts
from ..manifest import MANIFEST_FILE, load_manifest
from .adapter_options import adapter_options
from .console import Json, output, print_json
from .option_groups import grouped


@grouped(adapters=adapter_options)
def inspect(
    *,
    path: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint or MLX folder, GGUF or artifact file, or folder of artifacts.", show_default=False
        ),
    ],
    adapters: Adapting,
    as_json: Json = False,
) -> int:
    """Show what a checkpoint, also with adapters, or an artifact holds."""
    if not path.exists():
        raise InputError(f"{path}: not found")
    if adapters.choices:
        graph = open_graph(path, applied=adapters.folders)
        found = _checkpoint(merge_adapters(graph, adapters))
        print_json(found) if as_json else _show(found)
        return 0
    if path.suffix == ".gguf" and path.is_file():
        found = _gguf(path)
        print_json(found) if as_json else _show(found)
        return 0
    found = _folder(path) if path.is_dir() and not _is_listed(path) else _artifacts(path)
    if as_json:
        print_json(found)
    else:
        _show(found)
    return 0


def _is_listed(path: Path) -> bool:
    """Whether a folder has a manifest, or one above it lists something there."""
    if load_manifest(path) is not None:
        return True
    try:
        return bool(listed_artifacts(path))
    except InputError:
        return False


def _folder(path: Path) -> dict[str, Any]:
    """A folder without a manifest: what mlx-lm loads, a checkpoint, or artifacts that others wrote."""
    from ...targets.mlx.folder import describe_folder, is_mlx_folder

    if (path / CONFIG_FILE).is_file() and is_mlx_folder(path):
        return describe_folder(path)
    if (path / CONFIG_FILE).is_file() and has_weights(path):
        return _checkpoint(open_graph(path))
    if found := recognised_artifacts(path):
        return _rows(found)
    if (path / CONFIG_FILE).is_file():
        return _checkpoint(open_graph(path))  # which says what it lacks
    refuse_adapter_alone(path)
    raise InputError(f"{path}: holds neither {CONFIG_FILE} nor {MANIFEST_FILE}{instead_hint(path)}")


def _checkpoint(graph: WeightGraph) -> dict[str, Any]:
    config = graph.config
    attention, mixture = config.first(Attention), config.first(Mixture)
    roles: Counter[tuple[str, str]] = Counter()
    for weight in graph.weights():
        roles[weight.role.value, weight.view.dtype.value] += weight.view.n_rows * weight.view.n_cols
    return {
        "kind": "checkpoint",
        "name": graph.name,
        "model_type": config.model_type,
        **({} if graph.quantised_as is None else {"quantised_as": graph.quantised_as}),
        "parameters": graph.n_parameters,
        "layers": config.n_layers,
        "attention_layers": list(config.of_kind(Attention)),
        "conv_layers": len(config.of_kind(ShortConv)),
        "hidden_size": config.hidden_size,
        "heads": [attention.n_heads, attention.n_kv_heads] if attention else None,
        "experts": [mixture.n_experts, mixture.top_k] if mixture else None,
        "vocab_size": config.vocab_size,
        "context_length": config.context_length,
        "rope_theta": attention.rope.theta if attention and attention.rope else None,
        "tied": graph.is_tied,
        "tokens": graph.tokenizer.n_tokens if graph.tokenizer else None,
        "roles": [{"role": role, "dtype": dtype, "parameters": n} for (role, dtype), n in roles.items()],
        "notes": list(graph.notes),
    }


def _gguf(path: Path) -> dict[str, Any]:
    """Any GGUF file, of ours or not: metadata with lists as their length, and tensors and bytes by type."""
    from ...quantize.gguf_file.reader import read_gguf, tensor_nbytes

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
    return _rows(find_artifacts(path))


def _rows(artifacts: Sequence[Artifact]) -> dict[str, Any]:
    rows = []
    for artifact in artifacts:
        encodings: Counter[str] = Counter()
        tensors = _tensors(artifact)
        for encoding, n_bytes in tensors:
            encodings[encoding] += n_bytes
        checked = artifact.entry.get("validation") or {}
        rows.append(
            {
                "path": str(artifact.path),
                "target": artifact.target,
                "quant": artifact.quant,
                "size_bytes": artifact.size_bytes,
                "tensors": len(tensors),
                "encodings": dict(encodings),
                "verdict": checked.get("verdict"),
                "manifest": not artifact.is_recognised,
            }
        )
    return {"kind": "artifacts", "artifacts": rows}


def _tensors(artifact: Artifact) -> list[tuple[str, int]]:
    """Encoding and bytes of each stored tensor."""
    if not artifact.is_recognised:
        return [(tensor["encoding"], tensor["bytes"]) for tensor in artifact.entry["tensors"]]
    return [(tensor.encoding, tensor.nbytes) for tensor in get_target(artifact.target).listed(artifact)]


def _show(found: dict[str, Any]) -> None:
    if found["kind"] == "artifacts":
        _show_artifacts(found["artifacts"])
        return
    table = Table(box=None, pad_edge=False, show_header=False)
    if found["kind"] in ("gguf", "mlx"):
        table.add_row("tensors", str(found["tensors"]))
        for each in found["types"]:
            table.add_row(each["type"], f"{each['tensors']} tensors, {format_size(each['bytes'])}")
        for key, value in found["metadata"].items():
            table.add_row(key, str(value).partition("\n")[0][:120])
    else:
        for key, value in found.items():
            if key == "roles":
                value = "\n".join(f"{r['role']} {r['dtype']} {r['parameters']:,}" for r in value)
            elif key == "notes":
                value = "\n".join(value)
            table.add_row(key, f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value))
    output.print(table)


def _show_artifacts(found: Sequence[dict[str, Any]]) -> None:
    rows = []
    for row in found:
        parts = ", ".join(f"{name} {format_size(n)}" for name, n in row["encodings"].items())
        size = format_size(row["size_bytes"])
        verdict = row["verdict"] or ("not validated" if row["manifest"] else "no manifest")
        rows.append((row["path"], row["target"], row["quant"], size, str(row["tensors"]), parts, verdict))
    headings = ("path", "target", "quant", "size", "tensors", "encodings", "verdict")
    print_rows(output, headings, rows, texts=("target", "quant", "encodings", "verdict"))
