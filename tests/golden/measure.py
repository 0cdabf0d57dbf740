"""sha256 of what a conversion writes: its files, and apart from them the stored numbers, whatever file holds them."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import tempfile
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from golden.cases import Case, cases
from lfm_convert.convert.manifest import MANIFEST_FILE
from lfm_convert.convert.pipeline import convert, open_model
from lfm_convert.quantize.encoding import Part, matrix_height
from lfm_convert.targets.plans import Plan, TensorPlan
from lfm_convert.targets.stream import DEFAULT_RANGE_BYTES, Execution, write_tensors
from lfm_convert.targets.target import get_target

# Whose versions may change bytes: compilers of encoders, writers of files.
_LIBRARIES = {
    "gguf": ("numpy", "numba", "llvmlite"),
    "onnx": ("numpy", "numba", "llvmlite", "onnx"),
    "mlx": ("numpy",),
    "executorch": ("numpy", "executorch", "torch", "torchao", "flatbuffers"),
    "coreml": ("numpy", "numba", "llvmlite"),
    "compressed-tensors": ("numpy",),
}
_WEIGHTS = {".gguf", ".onnx", ".safetensors", ".pte", ".ptd", ".mlmodel", ".bin"}

Measured = dict[str, Any]


def libraries(target: str) -> dict[str, str]:
    """The versions that were used."""
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in _LIBRARIES[target]}


def measure(case: Case, scratch: Path, **execution: Any) -> Measured:
    """Converts; returns {"quants": {quant: {"numbers": …, "files": {path: …}}}, "beside": {path: …}}.

    `execution` goes to `convert`: jobs, range_bytes.
    """
    with tempfile.TemporaryDirectory(dir=scratch) as out:
        made = convert(
            case.source(scratch),
            target=case.target,
            quant=case.quants,
            out=out,
            options=case.arguments(scratch),
            validate_after=False,
            **execution,
        )
        quants = {plan.quant: _of_plan(case, plan, Path(out), scratch) for plan in made.plans}
        beside = {
            path.relative_to(out).as_posix(): _digest(path)
            for path in sorted(Path(out).rglob("*"))
            if path.is_file() and not _holds_weights(path) and path.name != MANIFEST_FILE
        }
    return {"quants": quants, "beside": beside}


def measure_numbers(case: Case, scratch: Path) -> dict[str, str]:
    """Only the stored numbers of each quant, without the files: a program of ExecuTorch takes long to lower."""
    graph, target = open_model(case.source(scratch)), get_target(case.target).with_options(case.arguments(scratch))
    return {quant: _encode(target.plan(graph, quant), scratch) for quant in case.quants}


def _of_plan(case: Case, plan: Plan, out: Path, scratch: Path) -> Measured:
    files = [out / file.path for file in plan.files]
    return {
        # a program's layout is the exporter's own: its numbers are encoded once more
        "numbers": _encode(plan, scratch) if case.is_slow else _numbers(plan, out),
        "files": {path.relative_to(out).as_posix(): _digest(path) for path in files if _holds_weights(path)},
    }


def _encode(plan: Plan, scratch: Path) -> str:
    sizes: dict[str, int] = {}
    for tensor in plan.tensors:
        for part, place in zip(tensor.encoding.parts(tensor.view.n_cols), tensor.placements, strict=True):
            sizes[place.path] = max(sizes.get(place.path, 0), place.offset + _nbytes(part, tensor))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        for name, n_bytes in sizes.items():
            path = Path(folder, name)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                file.truncate(n_bytes)
        write_tensors(plan.tensors, Path(folder), Execution(jobs=2))
        return _numbers(plan, Path(folder))


def _numbers(plan: Plan, folder: Path) -> str:
    digest = hashlib.sha256()
    for tensor in plan.tensors:
        for part, place in zip(tensor.encoding.parts(tensor.view.n_cols), tensor.placements, strict=True):
            with (folder / place.path).open("rb") as file:
                file.seek(place.offset)
                digest.update(file.read(_nbytes(part, tensor)))
    return digest.hexdigest()


def _nbytes(part: Part, tensor: TensorPlan) -> int:
    return part.offset(tensor.view.n_rows, matrix_height(tensor.view.shape))


def _holds_weights(path: Path) -> bool:
    return path.suffix in _WEIGHTS or ".onnx_data" in path.name


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def main() -> None:
    """Prints {case: measured} of the cases named `target:name`, for a process with other settings than the tests'."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("names", nargs="+")
    parser.add_argument("--quants", help="only these, comma-separated")
    parser.add_argument("--jobs", type=int)
    parser.add_argument("--range-bytes", type=int, default=DEFAULT_RANGE_BYTES)
    options = parser.parse_args()
    chosen = {f"{case.target}:{case.name}": case for case in cases()}
    found = {}
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.names:
            case = chosen[name]
            if options.quants:
                case = replace(case, quants=tuple(q for q in case.quants if q in options.quants.split(",")))
            found[name] = measure(case, Path(scratch), jobs=options.jobs, range_bytes=options.range_bytes)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
