"""What can be told of a package without running it: what makes it broken, and what a compute unit will not take.

Faults hold for every device. Notes say that a package which is sound runs on another unit than one may hope for:

| what                                                        | source                                                |
|-------------------------------------------------------------|-------------------------------------------------------|
| scatters fall off the Neural Engine                         | coremltools 9.0, comments in `frontend/torch/ops.py`  |
| reduce_prod has no path there                               | ane-guide.readthedocs.io, chapter 4                   |
| results in float32 are computed elsewhere                   | Core ML Tools guide, "Typed Execution"                |
| depthwise convolutions fall back to the CPU                 | john-rocky/CoreML-LLM, its conversion notes          |
| a state whose last axis is no multiple of 32 fails there    | coremltools issue 2631                                |
| two states load, and fail at prediction there; three fail on the CPU | john-rocky/CoreML-LLM                        |
| files of weights above 1 GB (iOS) or 2 GB (macOS)           | Anemll/Anemll, its limits of a part                   |

Ranks above 5 are refused by Core ML itself (coremltools 9.0 `mil/program.py`), but for what only constants are made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...graph.errors import Faults, InputError
from .evaluator.element_types import BY_SPEC, FLOAT16
from .evaluator.package import Package, open_package, shown
from .evaluator.program import READ_STATE, WRITE_STATE, Function, Named, read_program
from .evaluator.weight_file import ALIGNMENT, Entry
from .mil import FEATURE_TYPES, OPSET, SPECIFICATION_VERSION

MAX_RANK = 5
STATE_WIDTH = 32
_GIGABYTE = 10**9
_REFUSED = {
    "scatter": "the Neural Engine does not scatter",
    "scatter_along_axis": "the Neural Engine does not scatter",
    "scatter_nd": "the Neural Engine does not scatter",
    "reduce_prod": "the Neural Engine has no product along an axis",
}


@dataclass(frozen=True)
class Findings:
    """Sentences. A package with `faults` is broken; `notes` are of single compute units."""

    faults: tuple[str, ...]
    notes: tuple[str, ...]


def check_packages(paths: Sequence[Path]) -> tuple[str, ...]:
    """The notes on the packages of a model, of several with the number of each.

    Raises: InputError as `check_package`, of the first that is broken.
    """
    notes = [check_package(path) for path in paths]
    if len(notes) == 1:
        return notes[0]
    return tuple(f"package {number}: {note}" for number, own in enumerate(notes, start=1) for note in own)


def check_package(path: Path) -> tuple[str, ...]:
    """The notes on a package.

    Raises: InputError that names all faults of a broken one.
    """
    found = examine(path)
    faults = Faults()
    for fault in found.faults:
        faults.add(fault)
    faults.raise_if_any(str(path))
    return found.notes


def examine(path: Path) -> Findings:
    """All findings. Raises: InputError for what is no package at all, or whose program cannot be read."""
    package = open_package(path)
    functions = read_program(package)
    faults = [*_versions(package, functions), *_description(package, functions), *_weights(package)]
    for function in functions.values():
        faults += [*_ranks(function), *stale_reads(function)]
    said: dict[str, list[str]] = {}
    for function in functions.values():
        for sentence in _refused(function):
            said.setdefault(sentence, []).append(shown(function.name))
    refused = (f"{' and '.join(names)}: {sentence}" for sentence, names in said.items())
    return Findings(tuple(faults), (*_states(functions), *_sizes(package), *refused))


def stale_reads(function: Function) -> list[str]:
    """Updates of a state that are not read before the next one, or at all, while what it held before is used after them.

    That is what coremltools' passes make of a program which reads a state anew instead of going on with what
    coreml_update_state gave: both reads become one.
    """
    faults = []
    for i, step in enumerate(function.steps):
        if step.kind != WRITE_STATE:
            continue
        after = function.steps[i + 1 :]
        following = next((s.kind for s in after if s.kind in (READ_STATE, WRITE_STATE) and s.state == step.state), None)
        before = {s.results[0].name for s in function.steps[:i] if s.kind == READ_STATE and s.state == step.state}
        users = [s.name for s in after if before & set(s.uses())]
        if users and following != READ_STATE:
            faults.append(
                f"function '{shown(function.name)}': the update '{step.name}' of the state '{shown(step.state)}' is "
                f"never read, and '{users[0]}' uses what it held before"
            )
    return faults


def _versions(package: Package, functions: Mapping[str, Function]) -> Iterator[str]:
    version = package.spec.specificationVersion
    if version != SPECIFICATION_VERSION:
        yield f"is of specification version {version}: expected {SPECIFICATION_VERSION} (iOS 18, macOS 15)"
    for function in functions.values():
        if function.opset != OPSET:
            yield f"function '{shown(function.name)}' is of opset {function.opset}: expected {OPSET}"


def _description(package: Package, functions: Mapping[str, Function]) -> Iterator[str]:
    """What an app is told of the functions, against what they are."""
    description = package.spec.description
    described = {each.name: each for each in description.functions} or {"main": description}
    if set(described) != set(functions):
        yield f"describes the functions {shown(', '.join(sorted(described)))}: its program has {shown(', '.join(sorted(functions)))}"
        return
    if description.functions and description.defaultFunctionName not in functions:
        yield f"names '{shown(description.defaultFunctionName)}' as its default function, which it does not have"
    for name, function in functions.items():
        said = described[name]
        groups = ((said.input, function.inputs), (said.output, function.outputs), (said.state, function.states))
        for kind, (features, values) in zip(("inputs", "outputs", "states"), groups, strict=True):
            is_said, is_so = _features(features), _values(values)
            for each in sorted(set(is_said) | set(is_so)):
                if not _agree(is_said.get(each), is_so.get(each)):
                    yield f"function '{shown(name)}' has other {kind} than its description says: see '{shown(each)}'"


# An element type, and sizes where all of them are fixed.
_Kind = tuple[str, tuple[int, ...] | None]


def _agree(said: _Kind | None, is_so: _Kind | None) -> bool:
    if said is None or is_so is None:
        return said is is_so
    return said[0] == is_so[0] and (said[1] == is_so[1] or None in (said[1], is_so[1]))


def _features(features: Any) -> dict[str, _Kind]:
    names = {number: BY_SPEC[dtype.value].name for dtype, number in FEATURE_TYPES.items()}
    found: dict[str, _Kind] = {}
    for each in features:
        is_state = each.type.WhichOneof("Type") == "stateType"
        array = each.type.stateType.arrayType if is_state else each.type.multiArrayType
        sizes = None if array.WhichOneof("ShapeFlexibility") else tuple(array.shape)
        found[each.name] = names.get(array.dataType, str(array.dataType)), sizes
    return found


def _values(values: tuple[Named, ...]) -> dict[str, _Kind]:
    found: dict[str, _Kind] = {}
    for each in values:
        sizes = tuple(size for size in each.type.shape or () if size is not None)
        is_fixed = each.type.shape is not None and len(sizes) == len(each.type.shape)
        found[each.name] = each.type.element.name, sizes if is_fixed else None
    return found


def _weights(package: Package) -> Iterator[str]:
    """The entries that the program refers to: their places, and that they and their data do not overlap.

    Headers, sizes and element types were held to the program when it was read.
    """
    for name, offsets in _references(package).items():
        file = package.weights(name)
        entries = [file.entry(offset) for offset in sorted(offsets)]
        if len(entries) != file.count:
            yield f"{file.path.name} says that it holds {file.count} constants, the program refers to {len(entries)}"
        spans = sorted(span for entry in entries for span in _spans(entry))
        for (_, stop, owner), (following, _, other) in pairwise(spans):
            if following < stop:
                yield f"{file.path.name}: the constants at bytes {owner} and {other} overlap at byte {following}"
                break
        if spans and spans[0][0] < ALIGNMENT:
            yield f"{file.path.name}: a constant lies within the header, at byte {spans[0][0]}"
        if askew := [entry.offset for entry in entries if entry.offset % ALIGNMENT or entry.start % ALIGNMENT]:
            yield f"{file.path.name}: the constant at byte {askew[0]} does not begin at a multiple of {ALIGNMENT}"


def _spans(entry: Entry) -> Iterator[tuple[int, int, int]]:
    """What an entry and its data occupy: [start, stop), and whose it is."""
    yield entry.offset, entry.offset + ALIGNMENT, entry.offset
    if entry.nbytes:
        yield entry.start, entry.start + entry.nbytes, entry.offset


def _references(package: Package) -> dict[str, set[int]]:
    """Offsets of the constants that the program takes from each file."""
    found: dict[str, set[int]] = {}
    for function in package.spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            values = [*operation.attributes.values()]
            values += [each.value for argument in operation.inputs.values() for each in argument.arguments]
            for value in values:
                if value.WhichOneof("value") == "blobFileValue":
                    found.setdefault(value.blobFileValue.fileName, set()).add(int(value.blobFileValue.offset))
    return found


def _ranks(function: Function) -> Iterator[str]:
    results = [result for step in function.steps for result in step.results]
    for each in (*function.inputs, *function.states, *results):
        if each.type.shape is not None and len(each.type.shape) > MAX_RANK:
            yield f"function '{shown(function.name)}': '{shown(each.name)}' is of rank {len(each.type.shape)}: at most {MAX_RANK}"


def _states(functions: Mapping[str, Function]) -> Iterator[str]:
    states = {each.name: each.type for function in functions.values() for each in function.states}
    if len(states) > 1:
        where = "the Neural Engine" if len(states) == 2 else "the Neural Engine, and the CPU updates them wrongly"
        yield f"has {len(states)} states ({shown(', '.join(states))}): more than one fail at prediction on {where}"
    for name, kind in states.items():
        width = (kind.shape or (0,))[-1]
        if width is None or width % STATE_WIDTH:
            yield f"state '{shown(name)}' is {width} wide, no multiple of {STATE_WIDTH}: it fails on the Neural Engine"


def _sizes(package: Package) -> Iterator[str]:
    for name in _references(package):
        size = package.weights(name).nbytes
        for limit, system in ((2, "macOS"), (1, "iOS")):
            if size > limit * _GIGABYTE:
                yield f"{size / _GIGABYTE:.2f} GB of weights in one file: {system} is known to refuse more than {limit} GB"
                break


def _refused(function: Function) -> Iterator[str]:
    """Operations that run elsewhere than on the Neural Engine, by kind."""
    for kind in dict.fromkeys(step.kind for step in function.steps):
        if kind in _REFUSED:
            yield f"{kind}: {_REFUSED[kind]}"
    wide = sum(any(result.type.element.name == "fp32" for result in step.results) for step in function.steps)
    halves = sum(any(result.type.element.name == FLOAT16 for result in step.results) for step in function.steps)
    if wide:
        yield f"{wide} of {wide + halves} results are in float32, which the Neural Engine leaves to other units"
    depthwise = sum(_is_depthwise(step.kind, step.operands) for step in function.steps)
    if depthwise:
        yield f"{depthwise} depthwise convolutions fall back to the CPU"


def _is_depthwise(kind: str, operands: Mapping[str, Any]) -> bool:
    groups = operands.get("groups")
    try:
        return kind == "conv" and groups is not None and int(groups.whole()) > 1
    except (AttributeError, TypeError, ValueError):
        raise InputError("the groups of a convolution are no number") from None
