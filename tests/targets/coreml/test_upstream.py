"""What coremltools makes of our packages: its types of every value, its readings of every constant, its own weight.bin."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Trait
from lfm_convert.targets.coreml.package import WEIGHTS
from lfm_convert.targets.coreml.recognise import packages_of
from support.checkpoints import lfm3_config, make_checkpoint

from .packages import Made, make

pytestmark = pytest.mark.peers
pytest.importorskip("coremltools", reason='pip install "lfm-convert[coreml]"')

CASES = [("dense", "fp16"), ("moe", "int8"), ("moe", "int4"), ("lfm3", "int4-pal")]


def load(package: Path) -> tuple[Any, Any]:
    """The specification, and the program that coremltools reads from it, types inferred anew."""
    import coremltools
    from coremltools.converters.mil.frontend.milproto.load import load as load_program

    spec = coremltools.models.MLModel(str(package), skip_model_load=True).get_spec()
    weights = str((package / WEIGHTS).parent)
    return spec, load_program(spec, spec.specificationVersion, file_weights_dir=weights)


def written_types(function: Any) -> dict[str, tuple[int, tuple[int, ...]]]:
    block = function.block_specializations[function.opset]
    outputs = (output for operation in block.operations for output in operation.outputs)
    return {
        each.name: (each.type.tensorType.dataType, tuple(d.constant.size for d in each.type.tensorType.dimensions))
        for each in outputs
    }


def inferred_types(function: Any) -> Iterator[tuple[str, tuple[int, tuple[int, ...]]]]:
    from coremltools.converters.mil.mil.types import BUILTIN_TO_PROTO_TYPES

    for operation in function.operations:
        for each in operation.outputs:
            yield each.name, (BUILTIN_TO_PROTO_TYPES[each.dtype], tuple(each.shape))


@pytest.mark.parametrize(("kind", "quant"), CASES)
def test_types_and_values(kind: str, quant: str, made: Callable[..., Made]) -> None:
    package = made(kind, quant)
    spec, program = load(package.package)
    assert (spec.specificationVersion, spec.description.defaultFunctionName) == (9, "decode")
    assert set(program.functions) == {"decode", "prefill"}
    decoded = {f"{role.value}" if layer is None else f"{role.value}_{layer}": (role, view)
               for (role, layer), view in package.target.read(package.artifact).items()}  # fmt: skip
    for name, function in program.functions.items():
        written = written_types(spec.mlProgram.functions[name])
        known = {each: type_ for each, type_ in inferred_types(function) if each in written}
        assert {each: written[each] for each in known} == known
        assert len(known) > 300
        seen = {}
        for operation in function.operations:
            value = operation.outputs[0]
            if value.name in decoded and operation.op_type != "const":
                seen[value.name] = operation.materialized_val_inference()
            elif value.name in decoded:
                seen[value.name] = value.val
        assert set(seen) == set(decoded)
        for each, found in seen.items():
            role, view = decoded[each]
            expected = view.read().T if role.trait is Trait.KERNEL else view.read()
            np.testing.assert_array_equal(found.astype(np.float32), expected, err_msg=each)


@pytest.mark.parametrize("kind", ["moe", "lfm3"])
def test_types_of_packages_in_turn(kind: str, made: Callable[..., Made]) -> None:
    for package in packages_of(made(kind, "int8", coreml_split="1800kB").artifact):
        spec, program = load(package)
        for name, function in program.functions.items():
            written = written_types(spec.mlProgram.functions[name])
            known = {each: type_ for each, type_ in inferred_types(function) if each in written}
            assert {each: written[each] for each in known} == known and len(known) > 50


def test_an_odd_number_of_blocks(tmp_path: Path) -> None:
    """Rows of 200 and of 96 hold no even number of blocks, four gates no table: stored in 8 bits, and read as such."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", lfm3_config(intermediate_size=200)))
    for quant in ("int4", "int4-pal"):
        made = make(graph, quant, tmp_path / quant, context=64, chunk=8)
        _, program = load(made.package)
        down = program.functions["decode"].find_ops(op_type="constexpr_blockwise_shift_scale")
        values = {op.outputs[0].name: op.materialized_val_inference() for op in down}
        found = {role.value + f"_{layer}": view for (role, layer), view in made.target.read(made.artifact).items()}
        assert values
        for name, value in values.items():
            if name in found:
                np.testing.assert_array_equal(value.astype(np.float32), found[name].read(), err_msg=name)


@pytest.mark.parametrize("quant", ["fp16", "int4"])
def test_weight_file_is_the_one_that_apples_writer_makes(quant: str, made: Callable[..., Made], tmp_path: Path) -> None:
    """The same constants in the same order, written by libmilstoragepython: the same bytes."""
    from coremltools.libmilstoragepython import _BlobStorageReader, _BlobStorageWriter

    package = made("dense", quant)
    path = package.package / WEIGHTS
    reader, writer = _BlobStorageReader(str(path)), _BlobStorageWriter(str(tmp_path / "weight.bin"))
    spec, _ = load(package.package)
    places = sorted(set(_places(spec)))
    for offset, number in places:
        read, write = _METHODS[number]
        writer_offset = getattr(writer, write)(getattr(reader, read)(offset))
        assert writer_offset == offset
    del writer
    assert (tmp_path / "weight.bin").read_bytes() == path.read_bytes()


# By the number of an element type in MIL.proto.
_METHODS = {
    10: ("read_fp16_data", "write_fp16_data"),
    11: ("read_float_data", "write_float_data"),
    31: ("read_uint8_data", "write_uint8_data"),
    35: ("read_uint4_data", "write_uint4_data"),
}


def _places(spec: Any) -> Iterator[tuple[int, int]]:
    for function in spec.mlProgram.functions.values():
        for operation in function.block_specializations[function.opset].operations:
            values = [*operation.attributes.values()]
            values += [b.value for argument in operation.inputs.values() for b in argument.arguments]
            for value in values:
                if value.WhichOneof("value") == "blobFileValue":
                    yield value.blobFileValue.offset, value.type.tensorType.dataType
