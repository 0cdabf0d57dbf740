"""GGUF files without a manifest: what they are, which parts belong together, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.quantize.gguf_file.header import TensorInfo, header_bytes, string, uint32
from lfm_convert.targets.gguf.recognise import recognise
from lfm_convert.targets.gguf.target import TARGET
from lfm_convert.targets.target import NotJudged
from support.llama_cpp import KNOWN_AS_LFM2, convert_command
from support.refusals import refused


@pytest.fixture
def split(moe_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> Path:
    """A folder with three parts and more of one file."""
    artifact = write_quant(moe_graph, "Q8_0", split_max_size=300_000)
    assert len(artifact.files) > 2
    folder = tmp_path / "split"
    folder.mkdir()
    for file in artifact.files:
        shutil.copy(file, folder)
    return folder


@pytest.mark.parametrize(
    "quant", ["F32", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q4_K_M", "Q4_0", "IQ4_XS", "Q3_K_M", "Q2_K"]
)
def test_a_quant_is_told_from_the_file(moe_graph: WeightGraph, write_quant: Any, quant: str) -> None:
    written = write_quant(moe_graph, quant)
    (found,) = recognise(written.path)
    assert (found.quant, found.class_name, found.files) == (quant, written.class_name, (written.path,))
    assert found.is_recognised and found.entry == {}


def test_a_file_type_that_its_tensors_are_not_is_not_believed(moe_graph: WeightGraph, write_quant: Any) -> None:
    for override, quant, class_name in (("2", "Q8_0", "q8"), ("1031", "Q8_0", "q8"), ("99", "Q8_0", "q8")):
        (found,) = recognise(write_quant(moe_graph, "Q8_0", metadata=(f"general.file_type={override}",)).path)
        assert (found.quant, found.class_name) == (quant, class_name)
    # wider than its name in most, narrower in some: the class is that of what loses most
    (found,) = recognise(write_quant(moe_graph, "Q8_0", tensor_type=("ffn_down=Q4_0",)).path)
    assert (found.quant, found.class_name) == ("Q8_0", "q4")


def test_any_part_leads_to_all(moe_graph: WeightGraph, split: Path) -> None:
    parts = tuple(sorted(split.iterdir()))
    for path in (split, *parts):
        (found,) = recognise(path)
        assert (found.path, found.files) == (parts[0], parts)
    assert TARGET.read(found).keys() >= {weight.address for weight in moe_graph.weights()}


def test_half_of_a_split_file_is_refused(split: Path) -> None:
    first, second, *_ = sorted(split.iterdir())
    second.unlink()
    with refused(first, "is not whole", f"'{second.name}' is missing"):
        recognise(split)
    renamed = first.rename(split / "model.gguf")
    with refused(renamed, "is part 1 of", "which its name does not say: expected NAME-00001-of-"):
        recognise(renamed)


def test_a_part_of_another_file_is_refused(split: Path) -> None:
    first, second, third, *_ = sorted(split.iterdir())
    shutil.copy(third, second)
    with refused(second, "says that it is part 3 of", "expected 2 of"):
        recognise(first)


@pytest.mark.parametrize(
    ("pairs", "sentence"),
    [
        ([string("general.architecture", "falcon")], "architecture 'falcon': expected one of lfm2, lfm2moe"),
        ([string("general.architecture", "clip"), string("general.type", "mmproj")], "its general.type is 'mmproj'"),
        ([string("general.type", "imatrix")], "its general.type is 'imatrix'"),
        ([string("general.architecture", "lfm2"), string("split.count", "two")], "says that it is part"),
    ],
)
def test_what_is_no_model_of_ours_is_refused(tmp_path: Path, pairs: Any, sentence: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(header_bytes(pairs, [TensorInfo("t", (8,), "F32", 0)]) + bytes(32))
    with refused(path, sentence):
        recognise(path)


def test_auxiliary_files_of_a_folder_are_passed_over(moe_graph: WeightGraph, write_quant: Any, tmp_path: Path) -> None:
    model = Path(shutil.copy(write_quant(moe_graph, "Q4_0").path, tmp_path))
    for kind in ("mmproj", "imatrix"):
        pairs = [string("general.type", kind), uint32("a", 1)]
        (tmp_path / f"{kind}.gguf").write_bytes(header_bytes(pairs, [TensorInfo("t", (8,), "F32", 0)]) + bytes(32))
    assert [found.path for found in recognise(tmp_path)] == [model]
    (tmp_path / "empty").mkdir()
    assert recognise(tmp_path / "empty") == ()


def test_a_type_that_is_only_listed_is_not_judged(moe_graph: WeightGraph, write_quant: Any) -> None:
    """One tensor is renumbered as a type of its own size."""
    path = write_quant(moe_graph, "F32").path
    data = bytearray(path.read_bytes())
    name = b"blk.0.shortconv.conv.weight"
    at = data.index(name) + len(name) + 4 + 2 * 8
    data[at : at + 4] = (26).to_bytes(4, "little")  # I32
    path.write_bytes(data)
    (found,) = recognise(path)
    with pytest.raises(NotJudged, match=r"1 tensors in I32, such as blk\.0\.shortconv") as caught:
        TARGET.read(found)
    assert len(caught.value.decoded) == len(list(moe_graph.weights())) - 1


@pytest.mark.peers
@pytest.mark.slow
def test_the_converters_own_fused_and_split_file(tmp_path: Path, tiny_dense: Path) -> None:
    """`--fuse-qkv` and `--split-max-size` of `convert_hf_to_gguf.py`: every weight comes back."""
    command = convert_command(tiny_dense, tmp_path / "m.gguf", "f32", patch=KNOWN_AS_LFM2)
    subprocess.run([*command, "--fuse-qkv", "--split-max-size", "1M"], check=True, capture_output=True)
    (found,) = recognise(tmp_path)
    assert len(found.files) > 1
    weights = TARGET.read(found)
    for weight in open_graph(tiny_dense).weights():
        np.testing.assert_array_equal(weights[weight.address].read().reshape(weight.shape), weight.view.read())
