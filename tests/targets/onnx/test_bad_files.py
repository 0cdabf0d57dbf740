"""`lfm-convert validate` of a folder whose data is not what was written: named in a sentence. Exit code 5."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import ExitCode
from lfm_convert.graph.graph import WeightGraph
from support.checkpoints import make_checkpoint, moe_config

DATA, GRAPH = "onnx/model_q4.onnx_data", "onnx/model_q4.onnx"


@pytest.fixture(scope="module")
def written(dense_graph: WeightGraph, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("onnx") / "model"
    convert(dense_graph, target="onnx", quant="q4", out=folder, validate_after=False)
    return folder


def _missing(folder: Path) -> None:
    (folder / DATA).unlink()


def _truncated(folder: Path) -> None:
    os.truncate(folder / DATA, 1000)


def _changed(folder: Path) -> None:
    with (folder / DATA).open("r+b") as file:
        file.write(b"\xff" * 64)


def _linked(folder: Path) -> None:
    """A link to the very bytes, but outside: what runs would be someone else's file."""
    outside = folder.parent / "elsewhere"
    shutil.move(folder / DATA, outside)
    (folder / DATA).symlink_to(outside)


def _dangling(folder: Path) -> None:
    (folder / DATA).unlink()
    (folder / DATA).symlink_to(folder / "onnx" / "nothing")


def _pointed_outside(folder: Path) -> None:
    """The graph reads its weights from a file beside the folder."""
    shutil.copy(folder / DATA, folder.parent / "elsewhere")
    model = onnx.load(folder / GRAPH, load_external_data=False)
    for initializer in model.graph.initializer:
        for entry in initializer.external_data:
            if entry.key == "location":
                entry.value = "../../elsewhere"
    (folder / GRAPH).write_bytes(model.SerializeToString(deterministic=True))


def _pointed_outside_knowingly(folder: Path) -> None:
    """The same, and the manifest was made to agree."""
    _pointed_outside(folder)
    _agree(folder, GRAPH)


def _listed_outside(folder: Path) -> None:
    """The manifest names a file outside."""
    manifest = json.loads((folder / "lfm-convert.json").read_text())
    manifest["artifacts"][0]["files"][1]["path"] = "../elsewhere"
    (folder / "lfm-convert.json").write_text(json.dumps(manifest))


def _agree(folder: Path, name: str) -> None:
    """Makes the manifest say of a file what it is now."""
    manifest = json.loads((folder / "lfm-convert.json").read_text())
    (entry,) = (file for file in manifest["artifacts"][0]["files"] if file["path"] == name)
    data = (folder / name).read_bytes()
    entry |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "lfm-convert.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (_missing, "'onnx/model_q4.onnx_data' is missing"),
        (_truncated, "'onnx/model_q4.onnx_data' has 1000 bytes: expected"),
        (_changed, "model_q4.onnx_data' has sha256"),
        (_linked, "'onnx/model_q4.onnx_data' is a link to"),
        (_dangling, "'onnx/model_q4.onnx_data' is missing"),
        (_pointed_outside, "'onnx/model_q4.onnx' has"),
        (_pointed_outside_knowingly, "is read from '../../elsewhere': not a file of this artifact"),
        (_listed_outside, "file '../elsewhere' lies outside the folder"),
    ],
)
def test_is_named(
    written: Path,
    dense_graph: WeightGraph,
    tiny_dense: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    spoil: Callable[[Path], None],
    said: str,
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(written, folder)
    spoil(folder)
    assert main(["validate", str(folder), "--reference", str(tiny_dense)]) == ExitCode.BAD_INPUT
    printed = capsys.readouterr()
    assert said in printed.err.replace("\n", " ")
    assert "Traceback" not in printed.err


@pytest.mark.parametrize(
    ("fields", "arguments", "rule"),
    [
        ({"head_dim": 24}, [], "head_dim is 24; GroupQueryAttention rotates heads of a multiple of 16"),
        ({"moe_intermediate_size": 48}, ["--onnx-moe", "qmoe"], "expert size 48 are multiples of 32"),
        ({"moe_intermediate_size": 48}, ["--strict"], "rows of 48 are not a multiple of the block of 32"),
    ],
)
@pytest.mark.parametrize("command", ["plan", "convert"])
def test_sizes_that_an_operator_refuses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, fields: dict, arguments: list[str], rule: str
) -> None:
    """The plan says so with the operator's rule, and no file is written."""
    checkpoint = make_checkpoint(tmp_path / "model", moe_config(**fields))
    where = ["--out", str(tmp_path / "out"), "--no-validate"] if command == "convert" else []
    assert main([command, str(checkpoint), "--target", "onnx", "--quant", "q4", *arguments, *where]) == ExitCode.USAGE
    assert rule in capsys.readouterr().err.replace("\n", " ")
    assert not (tmp_path / "out").exists()
