"""What it costs to understand and to extend the house, counted from the source: `python benchmarks/house.py`.

| figure | how it is counted |
|---|---|
| lines of a tensor's way | lines of the functions that run when the bundled dense model is converted, in the files that "The way of one tensor" in docs/architecture.md names, for ONNX those of its own section too; and in all files of this package, vocabulary, metadata and ONNX's graph included |
| files that name a family | files of this package whose text names one, outside `graph/families/`, the bundled models, and llama.cpp's names of pre-tokenizers |
| files of an addition | the files that an encoding, a target or a family of today has, beside its line in a registry |
"""

from __future__ import annotations

import ast
import re
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from types import FrameType
from typing import Any

import lfm_convert.graph.graph as anchor
from lfm_convert.convert.pipeline import convert, open_model
from lfm_convert.graph.families import FAMILIES

ROOT = Path(anchor.__file__).resolve().parents[1]
ROOMS = ("graph", "quantize", "targets", "validate", "convert")
_NAME = re.compile(r"lfm[23]|qwen|smollm|granite|gemma|phi-?[34]", re.IGNORECASE)
# Where families are named: their own files, models that travel along, and a format's names of their tokenizers.
_NO_CODE = ("graph/families/", "convert/bundled/", "targets/gguf/pre_tokenizers.py")


def main() -> None:
    for target, quant in (("gguf", "Q4_0"), ("onnx", "q4f16")):
        ran = trace(target, quant)
        print(f"{target} {quant}: {sum(ran.values())} lines of functions run, in {len(ran)} files")
        way = [path for path in files_of_the_way(target) if ran.get(path)]
        print(f"  of them on the way of one tensor: {sum(ran[path] for path in way)}, in {len(way)} files")
    named = files_that_name_a_family()
    print(f"files that name a family: {len(named)}" + "".join(f"\n  {path}" for path in named))
    for what, found in additions().items():
        print(f"{what}: {len(found)} file(s) and a line in a registry: {', '.join(found)}")


def files_of_the_way(target: str) -> list[str]:
    """The files that docs/architecture.md names where it follows one tensor, and for that target."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    way, *others = text.partition("## The way of one tensor")[2].partition("\n## ")[0].split("\n### ")
    way += "".join(other for other in others if f".{target}" in other.partition("\n")[0])
    return list(dict.fromkeys(re.findall(r"`([a-z0-9_/]+\.py)`", way)))


def trace(target: str, quant: str) -> dict[str, int]:
    """Lines of the functions that run in a conversion, by file."""
    ran: dict[str, set[int]] = defaultdict(set)

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            ran[frame.f_code.co_filename].add(frame.f_code.co_firstlineno)

    graph = open_model("bundled:dense")
    with tempfile.TemporaryDirectory() as folder:
        sys.setprofile(note)
        try:
            graph = open_model("bundled:dense")
            convert(graph, target=target, quant=quant, out=folder, jobs=1, validate_after=False)
        finally:
            sys.setprofile(None)
    found: dict[str, int] = {}
    for name, starts in ran.items():
        path = Path(name).resolve()
        if not path.is_relative_to(ROOT) or path.relative_to(ROOT).parts[0] not in ROOMS:
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found[path.relative_to(ROOT).as_posix()] = len(_lines_of(tree, starts))
    return found


def _lines_of(tree: ast.Module, starts: set[int]) -> set[int]:
    """The lines of functions that start at some lines, decorators included."""
    found: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            if starts & {first, node.lineno} and node.end_lineno:
                found |= set(range(first, node.end_lineno + 1))
    return found


def files_that_name_a_family() -> list[str]:
    found = []
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            name = path.relative_to(ROOT).as_posix()
            if not name.startswith(_NO_CODE) and _NAME.search(path.read_text(encoding="utf-8")):
                found.append(name)
    return found


def additions() -> dict[str, list[str]]:
    """The files of the newest of each kind."""
    targets = sorted(path.name for path in (ROOT / "targets").iterdir() if (path / "target.py").is_file())
    return {
        "an encoding": ["quantize/encodings/q4_0.py"],
        f"a target ({', '.join(targets)})": [f"targets/{targets[0]}/", f"quantize/policies/{targets[0]}.py"],
        f"a family ({', '.join(family.name for family in FAMILIES)})": ["graph/families/lfm3.py"],
    }


if __name__ == "__main__":
    main()
