"""The header: read back as written, by us and by gguf-py, and refused when damaged."""

from __future__ import annotations

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import InputError
from lfm_convert.graph.graph import Weight, WeightGraph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.tensor import ArrayTensor
from lfm_convert.quantize.gguf_file.header import (
    ALIGNMENT,
    TensorInfo,
    ValueType,
    boolean,
    float32,
    header_bytes,
    int32s,
    string,
    strings,
    uint32,
)
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.targets.gguf.metadata import metadata
from lfm_convert.targets.gguf.stored import stored_tensors
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import Artifact
from support.refusals import refused

PAIRS = [
    string("general.architecture", "lfm2"),
    uint32("a", 7),
    float32("b", 0.5),
    boolean("c", True),
    strings("d", ["x", "é"]),
    int32s("e", [-1, 0, 1]),
]
TENSORS = [TensorInfo("first", (3, 32), "Q4_0", 0), TensorInfo("second", (5,), "F32", 64)]
DATA = bytes(64 + 32)  # 3 rows of 18 bytes and 5 floats, each padded to 32
# magic, version, one tensor, one pair; "k" = uint32 5; "t" of one axis of 8 floats at 0; zeros up to 96
GOLDEN = (
    "47475546" "03000000" "0100000000000000" "0100000000000000"
    "0100000000000000" "6b" "04000000" "05000000"
    "0100000000000000" "74" "01000000" "0800000000000000" "00000000" "0000000000000000"
) + "00" * 22  # fmt: skip


def write(folder: Path, data: bytes) -> Path:
    path = folder / "x.gguf"
    path.write_bytes(data)
    return path


def test_a_header_byte_for_byte() -> None:
    assert header_bytes([uint32("k", 5)], [TensorInfo("t", (8,), "F32", 0)]).hex() == GOLDEN


def test_what_is_written_is_read(tmp_path: Path) -> None:
    header = header_bytes(PAIRS, TENSORS)
    found = read_gguf(write(tmp_path, header + DATA))
    assert found.metadata == {pair.key: pair.value for pair in PAIRS}
    assert found.tensors == tuple(TENSORS)
    assert found.data_offset == len(header)
    assert len(header) % ALIGNMENT == 0


@pytest.mark.parametrize("pair", [uint32("a", -1), uint32("a", 2**32), float32("a", 1e300), string("a", "\ud800")])
def test_a_value_beyond_its_type_is_refused(pair: Any) -> None:
    with pytest.raises(InputError, match="cannot store"):
        header_bytes([pair], [])


def test_a_written_file_reads_back(moe_graph: WeightGraph, write_quant: Any) -> None:
    artifact = write_quant(moe_graph, "F32")
    found = TARGET.read(artifact)
    assert found.keys() == {(stored.role, stored.layer) for stored in stored_tensors(moe_graph)}
    for weight in moe_graph.weights():
        view = found[weight.role, weight.layer]
        assert view.shape == weight.shape
        assert np.array_equal(view.read(), weight.view.read())


def test_quantized_weights_read_back_decoded(moe_graph: WeightGraph, write_quant: Any) -> None:
    found = TARGET.read(write_quant(moe_graph, "Q4_0"))
    experts = found[Role.EXPERT_DOWN, 2]
    plan = next(t for t in TARGET.plan(moe_graph, "Q4_0").tensors if t.name == "blk.2.ffn_down_exps.weight")
    expected = plan.encoding.decode(*plan.encoding.encode(plan.view.rows(0, plan.view.n_rows)))
    assert np.array_equal(experts.rows(3, 700), expected[3:700])


def test_bytes_do_not_depend_on_workers_and_ranges(moe_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> None:
    whole = write_quant(moe_graph, "Q4_0").path.read_bytes()
    plan = TARGET.plan(moe_graph, "Q4_0")
    TARGET.write(plan, moe_graph, tmp_path, Execution(jobs=3, range_bytes=5000))
    assert (tmp_path / plan.main_file).read_bytes() == whole


@pytest.mark.parametrize("quant", ["F16", "Q4_0"])
def test_a_weight_beyond_float16_is_named(dense_graph: WeightGraph, write_quant: Any, quant: str) -> None:
    layer = dense_graph.layers[1]
    values = layer[Role.ATTN_Q].read()
    values[7, 3] = 1e9
    huge = Weight(Role.ATTN_Q, 1, ArrayTensor("model.layers.1.self_attn.q_proj.weight", values))
    wrong = replace(layer, weights={**layer.weights, Role.ATTN_Q: huge})
    layers = tuple(wrong if index == 1 else kept for index, kept in enumerate(dense_graph.layers))
    with refused("model.layers.1.self_attn.q_proj.weight", quant, "wider encoding"):
        write_quant(replace(dense_graph, layers=layers), quant)


@pytest.mark.peers
def test_gguf_py_reads_it(moe_graph: WeightGraph, write_quant: Any) -> None:
    gguf = pytest.importorskip("gguf")
    artifact = write_quant(moe_graph, "Q8_0")
    reader = gguf.GGUFReader(artifact.path)
    pairs = metadata(moe_graph, stored_tensors(moe_graph), "Q8_0", quantized=True)
    assert [key for key in reader.fields if not key.startswith("GGUF.")] == [pair.key for pair in pairs]
    for pair in pairs:
        value = reader.fields[pair.key].contents()
        assert value == (pytest.approx(pair.value) if pair.type is ValueType.FLOAT32 else pair.value)
    planned = TARGET.plan(moe_graph, "Q8_0").tensors
    assert [t.name for t in reader.tensors] == [t.name for t in planned]
    for theirs, ours in zip(reader.tensors, planned, strict=True):
        assert theirs.data_offset == ours.placements[0].offset
        assert tuple(theirs.shape[::-1]) == ours.shape
        assert theirs.tensor_type.name == ours.encoding.name


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    whole = header_bytes(PAIRS, TENSORS) + DATA
    count = struct.pack("<Q", 2**60)
    cases = {
        "cannot be read as GGUF": b"",
        "does not start with 'GGUF'": b"GGML" + whole[4:],
        "version 2": whole[:4] + struct.pack("<I", 2) + whole[8:],
        "items are declared at 8": whole[:8] + count + whole[16:],
        "items are declared at 16": whole[:16] + count + whole[24:],
        "items are declared at 24": whole[:24] + count + whole[32:],
        "not UTF-8": whole[:32] + b"\xff" + whole[33:],
        "1 bytes after its last tensor": whole + b"\0",
        "unknown type 99": whole.replace(struct.pack("<I", 4) + struct.pack("<I", 7), struct.pack("<II", 99, 7)),
    }
    for message, data in cases.items():
        with refused("x.gguf", message):
            read_gguf(write(tmp_path, data))


@pytest.mark.parametrize("kept", [3, 7, 20, 30, 50, 100, 200, -97, -96, -64, -1])
def test_truncated_files_are_refused(tmp_path: Path, kept: int) -> None:
    whole = header_bytes(PAIRS, TENSORS) + DATA
    with refused("x.gguf", "truncated"):
        read_gguf(write(tmp_path, whole[:kept]))


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ([TensorInfo("a", (32,), "F32", 0), TensorInfo("b", (32,), "F32", 64)], "expected 224"),  # overlap
        ([TensorInfo("a", (32,), "F32", 0), TensorInfo("b", (32,), "F32", 160)], "expected 224"),  # gap
        ([TensorInfo("a", (8,), "F32", 8)], "places tensor 'a'"),  # misaligned
        ([TensorInfo("a", (2**62, 2**62), "F32", 0)], "truncated"),
        ([TensorInfo("a", (2**62,), "Q4_0", 0)], "truncated"),
        ([TensorInfo("a", (2**62 + 1,), "Q4_0", 0)], "not a multiple"),
        ([TensorInfo("a", (4, 0), "F32", 0)], "of shape [4, 0]"),
        ([TensorInfo("a", (1, 1, 1, 1, 8), "F32", 0)], "5 axes"),
        ([TensorInfo("a", (), "F32", 0)], "0 axes"),
        ([TensorInfo("a" * 64, (8,), "F32", 0)], "tensor of 1 axes named 'aaa"),
        ([TensorInfo("a", (8,), "F32", 0), TensorInfo("a", (8,), "F32", 32)], "'a' twice"),
    ],
)
def test_impossible_tensors_are_refused(tmp_path: Path, tensors: list[TensorInfo], message: str) -> None:
    with refused("x.gguf", message):
        read_gguf(write(tmp_path, header_bytes([], tensors) + bytes(256)))


def test_another_alignment_is_kept_to(tmp_path: Path) -> None:
    """Padded to 64 here: a header of 105 bytes to 128, a tensor of 32 bytes to 64."""
    tensor = TensorInfo("a", (8,), "F32", 0)
    header = header_bytes([uint32("general.alignment", 64)], [tensor])
    found = read_gguf(write(tmp_path, header.ljust(128, b"\0") + bytes(64)))
    assert (found.data_offset, found.tensors) == (128, (tensor,))
    with refused("x.gguf", "32 bytes after"):
        read_gguf(write(tmp_path, header.ljust(128, b"\0") + bytes(96)))


def test_impossible_alignments_types_and_repeated_keys_are_refused(tmp_path: Path) -> None:
    tensor = TensorInfo("a", (8,), "F32", 0)
    for pairs, message in (
        ([uint32("general.alignment", 0)], "alignment 0"),
        ([uint32("general.alignment", 48)], "alignment 48"),
        ([string("general.alignment", "32")], "alignment '32'"),
        ([uint32("k", 1), uint32("k", 2)], "'k' twice"),
    ):
        with refused("x.gguf", message):
            read_gguf(write(tmp_path, header_bytes(pairs, [tensor]) + bytes(32)))
    header = header_bytes([], [tensor])
    foreign = header.replace(struct.pack("<QI", 8, 0), struct.pack("<QI", 8, 99))
    with refused("x.gguf", "ggml type 99"):
        read_gguf(write(tmp_path, foreign + bytes(32)))


def test_a_tensor_of_another_model_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path, header_bytes([], [TensorInfo("mm.0.weight", (8,), "F32", 0)]) + bytes(32))
    with refused("mm.0.weight", "is not part of a model of architecture"):
        TARGET.read(Artifact(path, tmp_path, "gguf", "F32", "f32", (path,)))


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_no_flipped_byte_does_more_than_a_refusal(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    whole = bytearray(header_bytes(PAIRS, TENSORS) + DATA)
    whole[data.draw(st.integers(0, len(whole) - len(DATA) - 1))] = data.draw(st.integers(0, 255))
    try:
        read_gguf(write(tmp_path_factory.mktemp("flip"), bytes(whole)))
    except InputError as error:
        assert "x.gguf" in str(error)


def test_inspect_lists_any_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One tensor of a type we do not decode: IQ3_S, 110 bytes a block of 256, padded to 128."""
    infos = [TensorInfo("a", (1, 256), "Q8_0", 0), TensorInfo("b", (2, 32), "Q4_0", 288)]
    data = header_bytes(PAIRS, infos).replace(struct.pack("<QQIQ", 256, 1, 8, 0), struct.pack("<QQIQ", 256, 1, 21, 0))
    data = data.replace(struct.pack("<IQ", 2, 288), struct.pack("<IQ", 2, 128))
    path = write(tmp_path, data + bytes(128 + 64))
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["types"] == [
        {"type": "IQ3_S", "tensors": 1, "bytes": 110},
        {"type": "Q4_0", "tensors": 1, "bytes": 36},
    ]
    assert found["metadata"] == {
        "general.architecture": "lfm2", "a": 7, "b": 0.5, "c": True, "d": "2 items", "e": "3 items"
    }  # fmt: skip
    assert main(["inspect", str(path)]) == 0
    assert "IQ3_S" in capsys.readouterr().out
