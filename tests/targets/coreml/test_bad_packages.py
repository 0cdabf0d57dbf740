"""Packages that are damaged, made up, or of somebody else: one sentence each, and no crash."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.targets.coreml.evaluator.machine import Evaluator
from lfm_convert.targets.coreml.evaluator.package import open_package
from lfm_convert.targets.coreml.evaluator.program import read_program
from lfm_convert.targets.coreml.library import messages
from lfm_convert.targets.coreml.runner import CoremlRunner
from lfm_convert.targets.coreml.structure import check_package, examine
from lfm_convert.targets.target import get_target
from support.artifacts import write_artifact

MODEL = "Data/com.apple.CoreML/model.mlmodel"
WEIGHTS = "Data/com.apple.CoreML/weights/weight.bin"
OPSET = "CoreML8"


@pytest.fixture(scope="module")
def sound(dense_graph: WeightGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = get_target("coreml").with_options({"chunk": 4, "context": 16})
    return write_artifact(dense_graph, target, "int4", tmp_path_factory.mktemp("coreml")).path.parent


@pytest.fixture
def package(sound: Path, tmp_path: Path) -> Path:
    return shutil.copytree(sound, tmp_path / sound.name)


def change(package: Path, apply: Callable[[Any], None]) -> None:
    """Changes the specification of a package."""
    spec = messages().Model.FromString((package / MODEL).read_bytes())
    apply(spec)
    (package / MODEL).write_bytes(spec.SerializeToString())


def block(spec: Any, function: str = "decode") -> Any:
    return spec.mlProgram.functions[function].block_specializations[OPSET]


def first(spec: Any, kind: str, function: str = "decode") -> Any:
    return next(each for each in block(spec, function).operations if each.type == kind)


def sentence(package: Path) -> str:
    with pytest.raises(InputError) as caught:
        check_package(package)
        runner = CoremlRunner(package, threads=1)
        runner.extend([5, 6, 7])
        runner.extend([8])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_sound_package_has_no_faults(sound: Path) -> None:
    found = examine(sound)
    assert found.faults == ()
    assert any("float32" in note for note in found.notes)
    assert CoremlRunner(sound, threads=1).extend([5, 6, 7]).shape == (3, 512)


# --- files ---


def test_what_is_no_package(package: Path) -> None:
    (package / MODEL).unlink()
    assert "has no file 'Data/com.apple.CoreML/model.mlmodel'" in sentence(package)
    (package / "Manifest.json").write_text("{}")
    assert "names no model" in sentence(package)
    (package / "Manifest.json").unlink()
    assert "is no .mlpackage: it has no Manifest.json" in sentence(package)


def test_a_manifest_that_leads_outside(package: Path) -> None:
    manifest = package / "Manifest.json"
    manifest.write_text(manifest.read_text().replace("com.apple.CoreML/model.mlmodel", "../../../etc/passwd"))
    assert "is outside the package" in sentence(package)


@pytest.mark.parametrize("data", [b"", b"garbage", b"\x08\x09", b"\xff" * 1000])
def test_garbage_in_place_of_the_model(package: Path, data: bytes) -> None:
    (package / MODEL).write_bytes(data)
    assert "model" in sentence(package)


def test_weights_that_are_missing_truncated_or_elsewhere(package: Path) -> None:
    size = (package / WEIGHTS).stat().st_size
    os.truncate(package / WEIGHTS, size - 200)
    assert "weight.bin: " in sentence(package)
    (package / WEIGHTS).unlink()
    assert "is missing, or no file" in sentence(package)
    os.mkfifo(package / WEIGHTS)
    assert "is missing, or no file" in sentence(package)

    def outside(spec: Any) -> None:
        for operation in block(spec).operations:
            bindings = [binding for each in operation.inputs.values() for binding in each.arguments]
            for value in [*operation.attributes.values(), *(binding.value for binding in bindings)]:
                if value.HasField("blobFileValue"):
                    value.blobFileValue.fileName = "@model_path/../../../weights.bin"

    change(package, outside)
    assert "which is no file of the package" in sentence(package)


# --- the program ---


def _other_version(spec: Any) -> None:
    spec.specificationVersion = 8


def _foreign(spec: Any) -> None:
    first(spec, "softmax").type = "crop_resize"
    first(spec, "silu").type = "lstm"


def _undefined(spec: Any) -> None:
    first(spec, "softmax").inputs["x"].arguments[0].name = "nothing\nat all"


def _cycle(spec: Any) -> None:
    operation = first(spec, "softmax")
    operation.inputs["x"].arguments[0].name = operation.outputs[0].name


def _twice(spec: Any) -> None:
    first(spec, "softmax").outputs[0].name = "position"


def _no_output(spec: Any) -> None:
    block(spec).outputs.append("missing")


def _lacks(spec: Any) -> None:
    del first(spec, "linear").inputs["weight"]


def _unknown_operand(spec: Any) -> None:
    operation = first(spec, "softmax")
    operation.inputs["temperature"].CopyFrom(operation.inputs["axis"])


def _mixed(spec: Any) -> None:
    first(spec, "mul").outputs[0].type.tensorType.dataType = 11


def _huge(spec: Any) -> None:
    first(spec, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size = 1 << 40


def _huge_constant(spec: Any) -> None:
    for operation in block(spec).operations:
        if operation.type == "const" and operation.attributes["val"].HasField("blobFileValue"):
            operation.attributes["val"].type.tensorType.dimensions[0].constant.size = 1 << 50
            return


def _empty_constant(spec: Any) -> None:
    for operation in block(spec).operations:
        value = operation.attributes.get("val")
        if (
            value is not None
            and value.immediateValue.tensor.WhichOneof("value") == "ints"
            and value.type.tensorType.rank
        ):
            value.type.tensorType.dimensions[0].constant.size = 0
            value.type.tensorType.dimensions.add().constant.size = 1 << 60
            return


def _other_shape(spec: Any) -> None:
    first(spec, "softmax").outputs[0].type.tensorType.dimensions[0].constant.size += 1


def _rank(spec: Any) -> None:
    operation = first(spec, "softmax")
    for _ in range(4):
        operation.outputs[0].type.tensorType.dimensions.add().constant.size = 1


def _nested(spec: Any) -> None:
    first(spec, "softmax").blocks.add()


def _opset(spec: Any) -> None:
    spec.mlProgram.functions["decode"].opset = "CoreML99"


def _neural_network(spec: Any) -> None:
    spec.neuralNetwork.SetInParent()


def _nothing(spec: Any) -> None:
    spec.mlProgram.ClearField("functions")


def _state_unread(spec: Any) -> None:
    first(spec, "softmax").inputs["x"].arguments[0].name = "kv_cache"


def _offset(spec: Any) -> None:
    for operation in block(spec).operations:
        for argument in operation.inputs.values():
            for binding in argument.arguments:
                if binding.value.HasField("blobFileValue"):
                    binding.value.blobFileValue.offset += 64
                    return


def _blocks(spec: Any) -> None:
    """A scale for no whole number of columns."""
    operation = first(spec, "constexpr_blockwise_shift_scale")
    operation.inputs["scale"].CopyFrom(operation.inputs["data"])


def _nonsense(spec: Any) -> None:
    """An axis that is a tensor."""
    operation = first(spec, "softmax")
    operation.inputs["axis"].CopyFrom(operation.inputs["x"])


_CHANGES: dict[str, tuple[Callable[[Any], None], str]] = {
    "another version": (_other_version, "is of specification version 8: expected 9 (iOS 18, macOS 15)"),
    "foreign operations": (_foreign, "has operations that are not evaluated: crop_resize, lstm"),
    "an undefined name": (_undefined, r"takes 'nothing\nat all', which nothing before it gives"),
    "a cycle": (_cycle, "which nothing before it gives"),
    "a name given twice": (_twice, "the name 'position' is given twice"),
    "an output of nothing": (_no_output, "its output 'missing' is given by no operation"),
    "a missing operand": (_lacks, "lacks its weight"),
    "an unknown operand": (_unknown_operand, "has operands that are not evaluated: temperature"),
    "mixed types": (_mixed, "mixes fp16 and fp32"),
    "a huge result": (_huge, "more than 1073741824 numbers in one tensor are not evaluated"),
    "a huge constant": (_huge_constant, "bytes: expected"),
    "an empty constant": (_empty_constant, "is a constant int32 [0, 1152921504606846976]"),
    "another shape": (_other_shape, "is declared"),
    "a rank of 7": (_rank, "is of rank"),
    "a nested program": (_nested, "has a program of its own"),
    "another opset": (_opset, "is of opset 'CoreML99'"),
    "a neural network": (_neural_network, "expected a model that is an ML program, found neuralNetwork"),
    "no function": (_nothing, "its program has no function"),
    "a state that is not read": (_state_unread, "takes the state 'kv_cache' without reading it"),
    "another offset": (_offset, "expected the entry of a constant at byte"),
    "scales that do not fit": (_blocks, "constexpr_blockwise_shift_scale) has operands that do not fit"),
    "operands of another kind": (_nonsense, "(softmax) fails"),
}


@pytest.mark.parametrize("name", _CHANGES)
def test_a_program_that_is_wrong_is_one_sentence(package: Path, name: str) -> None:
    apply, said = _CHANGES[name]
    change(package, apply)
    assert said in sentence(package)


# --- structure ---


def test_a_description_of_another_program_is_a_fault(package: Path) -> None:
    def lies(spec: Any) -> None:
        spec.description.defaultFunctionName = "main"
        decode = next(each for each in spec.description.functions if each.name == "decode")
        next(each for each in decode.input if each.name == "position").type.multiArrayType.shape[0] = 2

    change(package, lies)
    said = sentence(package)
    assert "names 'main' as its default function" in said
    assert "function 'decode' has other inputs than its description says: see 'position'" in said

    def fewer(spec: Any) -> None:
        del spec.description.functions[0]

    change(package, fewer)
    assert "describes the functions" in sentence(package)


def test_constants_that_overlap_or_lie_askew_are_faults(package: Path) -> None:
    offsets = sorted(_offsets(package))
    with (package / WEIGHTS).open("r+b") as file:
        file.seek(offsets[0] + 16)
        start = int.from_bytes(file.read(8), "little")
        file.seek(offsets[0] + 16)
        file.write((start + 4).to_bytes(8, "little"))
        file.seek(0)
        file.write((len(offsets) + 3).to_bytes(4, "little"))
    found = examine(package).faults
    assert any("does not begin at a multiple of 64" in fault for fault in found)
    assert any(f"holds {len(offsets) + 3} constants, the program refers to {len(offsets)}" in fault for fault in found)
    with (package / WEIGHTS).open("r+b") as file:
        file.seek(offsets[0] + 16)
        file.write(offsets[1].to_bytes(8, "little"))
    assert any("overlap at byte" in fault for fault in examine(package).faults)


def _offsets(package: Path) -> set[int]:
    spec = messages().Model.FromString((package / MODEL).read_bytes())
    values = [
        value
        for function in spec.mlProgram.functions.values()
        for operation in function.block_specializations[OPSET].operations
        for value in [
            *operation.attributes.values(),
            *(a.value for i in operation.inputs.values() for a in i.arguments),
        ]
    ]
    return {value.blobFileValue.offset for value in values if value.HasField("blobFileValue")}


def test_states_that_compute_units_refuse_are_noted(moe_graph: WeightGraph, tmp_path: Path) -> None:
    target = get_target("coreml").with_options({"chunk": 4, "context": 16, "coreml_state": "all"})
    other = write_artifact(moe_graph, target, "fp16", tmp_path / "all").path.parent
    notes = " ".join(check_package(other))
    assert "has 2 states (kv_cache, conv_state): more than one fail at prediction on the Neural Engine" in notes

    def narrows(spec: Any) -> None:
        for function in spec.description.functions:
            for state in function.state:
                state.type.stateType.arrayType.shape[-1] = 7
        for function in spec.mlProgram.functions.values():
            for each in function.inputs:
                if each.type.HasField("stateType"):
                    each.type.stateType.wrappedType.tensorType.dimensions[-1].constant.size = 7
            for operation in function.block_specializations[OPSET].operations:
                if operation.type in ("read_state", "write_state"):
                    for result in operation.outputs:
                        result.type.tensorType.dimensions[-1].constant.size = 7

    def no_writes(spec: Any) -> None:
        for function in spec.mlProgram.functions.values():
            operations = function.block_specializations[OPSET].operations
            kept = [operation for operation in operations if operation.type != "write_state"]
            del operations[:]
            operations.extend(kept)

    change(other, no_writes)
    change(other, narrows)
    assert any("is 7 wide, no multiple of 32: it fails on the Neural Engine" in note for note in examine(other).notes)


def test_large_files_of_weights_are_noted(package: Path) -> None:
    for size, said in ((2_100_000_000, "macOS is known to refuse more than 2 GB"), (1_100_000_000, "iOS is known")):
        os.truncate(package / WEIGHTS, size)  # a hole, of which nothing is read
        assert any(said in note for note in examine(package).notes)


def _merge_reads(spec: Any) -> None:
    """What coremltools' passes make of reads of one state: all of them are the first."""
    for function in spec.mlProgram.functions.values():
        operations = function.block_specializations[OPSET].operations
        reads = [each.outputs[0].name for each in operations if each.type == "read_state"]
        assert len(reads) > 1
        kept = [each for each in operations if each.type != "read_state" or each.outputs[0].name == reads[0]]
        del operations[:]
        operations.extend(kept)
        for operation in operations:
            for argument in operation.inputs.values():
                for binding in argument.arguments:
                    if binding.name in reads:
                        binding.name = reads[0]


def test_merged_reads_of_a_state_change_the_logits_and_are_named(package: Path) -> None:
    before = CoremlRunner(package, threads=1).logits([5, 6, 7, 8, 9])
    change(package, _merge_reads)
    after = CoremlRunner(package, threads=1).logits([5, 6, 7, 8, 9])
    assert np.abs(before - after).max() > 0.1
    faults = examine(package).faults
    for name in ("decode", "prefill"):
        assert any(
            f"function '{name}': the update" in fault and "'kv_cache' is never read" in fault for fault in faults
        )


# --- anything ---


def _damaged(data: bytes, seed: int) -> bytes:
    chance, found = random.Random(seed), bytearray(data)
    for _ in range(chance.choice([1, 1, 2, 5, 20])):
        place, kind = chance.randrange(len(found)), chance.random()
        if kind < 0.8:
            found[place] = chance.randrange(256)
        elif kind < 0.9:
            del found[place : place + chance.randrange(1, 9)]
        else:
            found[place:place] = chance.randbytes(chance.randrange(1, 9))
    return bytes(found)


@pytest.mark.parametrize(
    "seeds", [range(60), pytest.param(range(60, 3000), marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_any_damage_to_the_program_is_a_sentence_or_none(package: Path, seeds: range) -> None:
    whole = (package / MODEL).read_bytes()
    for seed in seeds:
        (package / MODEL).write_bytes(_damaged(whole, seed))
        try:
            examine(package)
            runner = CoremlRunner(package, threads=1)
            runner.extend([5, 6])
            runner.extend([7])
        except (InputError, UsageError) as error:
            assert "\n" not in str(error), f"seed {seed}"


@pytest.mark.parametrize("seed", range(20))
def test_any_damage_to_headers_of_weights_is_a_sentence_or_none(package: Path, seed: int) -> None:
    chance, offsets = random.Random(seed), sorted(_offsets(package))
    with (package / WEIGHTS).open("r+b") as file:
        for _ in range(4):
            file.seek(chance.choice([0, *offsets]) + chance.randrange(64))
            file.write(chance.randbytes(1))
    try:
        examine(package)
        CoremlRunner(package, threads=1).extend([5, 6])
    except InputError as error:
        assert "\n" not in str(error)


def test_evaluating_does_not_write(package: Path) -> None:
    program = read_program(open_package(package))
    assert set(program) == {"decode", "prefill"}
    evaluator = Evaluator(package)
    before = {file: file.read_bytes() for file in package.rglob("*") if file.is_file()}
    inputs = {"input_ids": np.array([[5]], np.int32), "position": np.zeros(1, np.int32)}
    shape = next(each.type.shape for each in evaluator.functions["decode"].inputs if each.name == "conv_state_in")
    evaluator.run("decode", inputs | {"conv_state_in": np.zeros(shape, np.float16)})
    assert {file: file.read_bytes() for file in package.rglob("*") if file.is_file()} == before
