"""What a family costs: `python benchmarks/family_cost.py`.

| figure | how it is counted |
|---|---|
| lines | lines of code in the family's own file, without blank lines, comments and docstrings |
| elsewhere | files of the package outside `graph/families/` whose code names the family, by its model type, class or architecture in GGUF |
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

from lfm_convert.graph import families
from lfm_convert.graph.families.family import Family

ROOT = Path(families.__file__).resolve().parents[2]
ROOMS = ("graph", "quantize", "targets", "validate", "convert")
_SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def main() -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in product_files()}
    rows = [(family, lines_of(file_of(family)), [*named_in(family, texts)]) for family in families.FAMILIES]
    print(f"{'family':16}{'lines':>6}  elsewhere")
    for family, n_lines, elsewhere in rows:
        print(f"{family.name:16}{n_lines:>6}  {', '.join(elsewhere) or '-'}")
    shared = [ROOT / "graph" / "families" / name for name in ("decoder.py", "ropes.py", "places.py", "family.py")]
    print(f"shared by families: {', '.join(f'{path.name} {lines_of(path)}' for path in shared)}")


def file_of(family: Family) -> Path:
    """The file of a family: the module that has it as FAMILY."""
    modules = (module for name, module in vars(families).items() if not name.startswith("_"))
    return next(Path(module.__file__) for module in modules if getattr(module, "FAMILY", None) is family)


def product_files() -> Iterator[Path]:
    """Every module of the package but the families' own."""
    for room in ROOMS:
        for path in sorted((ROOT / room).rglob("*.py")):
            if "families" not in path.relative_to(ROOT).parts:
                yield path


def lines_of(path: Path) -> int:
    """Lines that hold code."""
    text = path.read_text(encoding="utf-8")
    docs = {
        line
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False)
        for line in range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1)
    }
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    found = {line for token in tokens if token.type not in _SKIPPED for line in range(token.start[0], token.end[0] + 1)}
    return len(found - docs)


def named_in(family: Family, texts: dict[Path, str]) -> Iterator[str]:
    """The files whose strings hold one of the family's names, as a whole."""
    names = {family.model_type, family.architecture, *((family.gguf.architecture,) if family.gguf else ())}
    pattern = re.compile(rf"""["']({"|".join(map(re.escape, sorted(names)))})["']""")
    return (path.relative_to(ROOT).as_posix() for path, text in texts.items() if pattern.search(text))


if __name__ == "__main__":
    sys.exit(main())
