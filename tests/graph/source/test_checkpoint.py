"""Checkpoint folders: shards and index must agree, and nothing outside the folder is opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.source.checkpoint import INDEX_FILE, SINGLE_FILE, Checkpoint, has_weights
from lfm_convert.graph.source.stamps import refuse_changed
from support.checkpoints import make_checkpoint
from support.refusals import refused
from support.safetensors_files import edit_tensors, float32, write_tensors

SHARDS = tuple(f"model-{i:05d}-of-00003.safetensors" for i in (1, 2, 3))


@pytest.fixture
def sharded(tmp_path: Path, tiny_moe_sharded: Path) -> Path:
    """A copy of the sharded model that a test may damage."""
    return Path(shutil.copytree(tiny_moe_sharded, tmp_path / "sharded"))


def edit_index(folder: Path, **placements: Any) -> None:
    path = folder / INDEX_FILE
    index = json.loads(path.read_text())
    index["weight_map"].update(placements)
    path.write_text(json.dumps(index))


def test_shards_hold_what_one_file_holds(tiny_moe: Path, tiny_moe_sharded: Path) -> None:
    single, sharded = Checkpoint(tiny_moe), Checkpoint(tiny_moe_sharded)
    assert [file.path.name for file in sharded.files] == list(SHARDS)
    assert single.tensors.keys() == sharded.tensors.keys()
    assert not sharded.notes
    for name, tensor in single.tensors.items():
        assert tensor.read().tobytes() == sharded.tensors[name].read().tobytes()


def test_all_missing_shards_are_listed(sharded: Path) -> None:
    for shard in SHARDS[:2]:
        (sharded / shard).unlink()
    with refused(f"{sharded}: missing", *SHARDS[:2]):
        Checkpoint(sharded)


@pytest.mark.parametrize(
    "place",
    ["../secret.safetensors", "/etc/passwd", "a/b.safetensors", "..", ".", "", "a\\b", "a\0b", "C:x.safetensors", 3, None, ["a"]],
)  # fmt: skip
def test_an_index_may_name_files_of_its_folder_only(place: object, sharded: Path) -> None:
    edit_index(sharded, evil=place)
    with refused(INDEX_FILE, "tensor 'evil'", repr(place), "expected a file name inside the folder"):
        Checkpoint(sharded)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"weight_map": []}', '{"weight_map": {}}', "[" * 100_000])
def test_an_index_that_is_none_is_refused(text: str, sharded: Path) -> None:
    (sharded / INDEX_FILE).write_text(text)
    with refused(INDEX_FILE):
        Checkpoint(sharded)


def test_a_tensor_in_two_shards_is_refused_naming_both(sharded: Path) -> None:
    name = "model.embed_tokens.weight"
    edit_tensors(sharded / SHARDS[2], lambda tensors: tensors.update({name: float32([1.0])}))
    with refused(f"tensor '{name}' is in both {SHARDS[0]} and {SHARDS[2]}"):
        Checkpoint(sharded)


def test_all_disagreements_of_the_index_are_reported(sharded: Path) -> None:
    edit_index(sharded, **{"model.embed_tokens.weight": SHARDS[1], "absent.weight": SHARDS[2]})
    with refused(
        f"places tensor 'model.embed_tokens.weight' in {SHARDS[1]}, found in {SHARDS[0]}",
        f"places tensor 'absent.weight' in {SHARDS[2]}, which does not hold it",
    ):
        Checkpoint(sharded)


def test_a_tensor_the_index_forgot_is_used_with_a_note(sharded: Path) -> None:
    path = sharded / INDEX_FILE
    index = json.loads(path.read_text())
    del index["weight_map"]["model.embed_tokens.weight"]
    path.write_text(json.dumps(index))
    (note,) = open_graph(sharded).notes
    assert "model.embed_tokens.weight" in note and SHARDS[0] in note


def test_a_wrong_total_size_is_noted(sharded: Path) -> None:
    path = sharded / INDEX_FILE
    index = json.loads(path.read_text())
    total, index["metadata"]["total_size"] = index["metadata"]["total_size"], 5
    path.write_text(json.dumps(index))
    (note,) = Checkpoint(sharded).notes
    assert "total_size 5" in note and str(total) in note


def test_a_single_file_beside_an_index_is_refused(sharded: Path) -> None:
    write_tensors(sharded / SINGLE_FILE, {"a": float32([1.0])})
    with refused(SINGLE_FILE, INDEX_FILE, "expected one"):
        Checkpoint(sharded)


def test_a_truncated_shard_is_refused_by_name(sharded: Path) -> None:
    path = sharded / SHARDS[1]
    os.truncate(path, path.stat().st_size - 100)
    with refused(SHARDS[1], "truncated"):
        Checkpoint(sharded)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "last.ckpt", "weights.pkl", "model.pth"])
def test_pickles_are_refused_unread(name: str, tmp_path: Path) -> None:
    folder = make_checkpoint(tmp_path)
    (folder / SINGLE_FILE).rename(folder / name)
    assert not has_weights(folder)
    with refused(f"missing {SINGLE_FILE}", name, "pickle weights are refused, save as safetensors"):
        open_graph(folder)


def test_an_empty_folder_says_what_is_missing(tmp_path: Path) -> None:
    with refused(f"{tmp_path}: missing {SINGLE_FILE}"):
        Checkpoint(tmp_path)


@pytest.mark.parametrize("change", ["touch", "grow", "replace", "delete"])
def test_a_source_that_changes_during_the_run_is_noticed(change: str, tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path) / SINGLE_FILE
    checkpoint = Checkpoint(tmp_path)
    refuse_changed(checkpoint.stamps)
    _change(path, change)
    with refused(path, "changed while it was being converted"):
        refuse_changed(checkpoint.stamps)


def _change(path: Path, change: str) -> None:
    stamp = path.stat()
    if change == "touch":
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns + 1))
    elif change == "grow":
        with path.open("ab") as file:
            file.write(b"\0")
        os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    elif change == "replace":
        copy = path.with_suffix(".copy")
        shutil.copyfile(path, copy)
        os.utime(copy, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
        copy.replace(path)
    else:
        path.unlink()
