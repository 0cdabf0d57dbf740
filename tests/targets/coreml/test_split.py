"""A model in several packages: run in turn they are the model, each is as small as asked, and none may be missing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.roles import Role
from lfm_convert.graph.units import parse_size
from lfm_convert.targets.coreml.evaluator.package import open_package
from lfm_convert.targets.coreml.package import WEIGHTS
from lfm_convert.targets.coreml.recognise import packages_of, recognise
from lfm_convert.targets.coreml.runner import CoremlRunner
from support.checkpoints import dense_config, make_checkpoint, moe_config

from .packages import Made, check, in_pieces, make

pytestmark = pytest.mark.peers
pytest.importorskip("coremltools", reason='pip install "lfm-convert[coreml]"')

# Of each bundled model a size that makes at least three packages of it in int8.
SPLIT = {"dense": "1500kB", "moe": "1800kB", "lfm3": "1200kB"}


@pytest.mark.parametrize("state", ["kv", "all"])
@pytest.mark.parametrize("kind", SPLIT)
def test_packages_in_turn_are_the_model(kind: str, state: str, made: Callable[..., Made]) -> None:
    """Chunks, padded ones and steps; then a second conversation in what the first left behind."""
    split = made(kind, "int8", coreml_split=SPLIT[kind], coreml_state=state)
    packages = packages_of(split.artifact)
    assert len(packages) >= 3
    assert all((package / WEIGHTS).stat().st_size <= parse_size(SPLIT[kind]) for package in packages)
    runner = split.run()
    for pieces in ([16, 7, *[1] * 17], [5, 16, 1, 3, 16, 15, 1, 1]):
        check(split, pieces, runner)


@pytest.mark.parametrize("kind", SPLIT)
def test_nothing_is_rounded_between_packages(kind: str, made: Callable[..., Made]) -> None:
    """The stream is of half precision there as everywhere: with halves after each operation the bits are the same."""
    whole, split = made(kind, "int8"), made(kind, "int8", coreml_split=SPLIT[kind])
    tokens = [1, *np.random.default_rng(5).integers(14, 1000, 39).tolist()]
    runners = [CoremlRunner(*packages_of(each.artifact), threads=1, precision="float16") for each in (whole, split)]
    np.testing.assert_array_equal(*(in_pieces(runner, tokens, [16, 5, *[1] * 19]) for runner in runners))
    assert (
        runners[0].experts(tokens[:20]) is None
        or all(
            (runners[0].experts(tokens[:20])[layer] == chosen).all()  # type: ignore[index]
            for layer, chosen in runners[1].experts(tokens[:20]).items()  # type: ignore[union-attr]
        )
    )


def test_the_tied_table_is_stored_again_as_the_head(made: Callable[..., Made]) -> None:
    split = made("dense", "int8", coreml_split=SPLIT["dense"])
    read = split.target.read(split.artifact)
    table, head = read[Role.EMBED, None], read[Role.LM_HEAD, None]
    np.testing.assert_array_equal(table.read(), head.read())
    assert any("in the last" in note for note in split.target.plan(split.graph, "int8").notes)


def test_an_untied_head_is_stored_once(tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", dense_config(tie_embedding=False)))
    split = make(graph, "int8", tmp_path / "out", context=64, chunk=8, coreml_split="300kB")
    assert len(packages_of(split.artifact)) > 2
    plan = split.target.plan(graph, "int8")
    assert len([t for t in plan.tensors if t.role is not None]) == len(list(graph.weights()))
    check(split, [8, 3, 1, 8, 1])


def test_what_an_app_is_told(made: Callable[..., Made]) -> None:
    split = made("lfm3", "int8", coreml_split=SPLIT["lfm3"])
    packages = packages_of(split.artifact)
    described = json.loads((split.artifact.folder / "model_config.json").read_text())["packages"]
    assert list(described) == [package.name for package in packages]
    for number, package in enumerate(packages, start=1):
        said = described[package.name]
        assert (said["part"], said["parts"]) == (number, len(packages))
        assert open_package(package).spec.description.metadata.userDefined["part"] == f"{number} of {len(packages)}"
        decode = said["functions"]["decode"]
        assert ("input_ids" in decode["inputs"]) is (number == 1) and ("hidden_in" in decode["inputs"]) is (number > 1)
        assert ("logits" in decode["outputs"]) is (number == len(packages))


@pytest.mark.parametrize(("kind", "size", "layer"), [("dense", "1KB", "0 with the token table"), ("moe", "1MB", "2")])
def test_packages_that_are_too_small_for_a_layer(kind: str, size: str, layer: str, made: Callable[..., Made]) -> None:
    whole = made(kind, "int8")
    target = whole.target.with_options({"coreml_split": size})
    with pytest.raises(UsageError, match=rf"--coreml-split 1\.00 .B: layer {layer} takes \d"):
        target.plan(whole.graph, "int8")


def test_converted_judged_and_judged_again_without_the_manifest(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the command line; of any one part the others are found."""
    out = tmp_path / "out"
    command = ["bundled:moe", "-t", "coreml", "-q", "int4", "--context", "1024", "--coreml-split", "1800kB"]
    assert main([*command, "--out", str(out)]) == 0, capsys.readouterr().err
    packages = sorted(out.glob("*.mlpackage"))
    assert len(packages) == 2
    (out / "lfm-convert.json").unlink()
    (found,) = recognise(packages[1])
    assert found.path.parent == packages[0] and packages_of(found) == packages
    assert recognise(out) == (found,)
    capsys.readouterr()
    assert main(["validate", str(packages[1]), "-r", "bundled:moe", "--suite", "smoke"]) == 0, capsys.readouterr().out


def test_parts_that_are_missing_or_of_another_model(made: Callable[..., Made], tmp_path: Path) -> None:
    split = made("dense", "int8", coreml_split=SPLIT["dense"])
    copies = [Path(shutil.copytree(package, tmp_path / package.name)) for package in packages_of(split.artifact)]
    with pytest.raises(InputError, match="takes hidden_in of a package before it: expected input_ids"):
        CoremlRunner(*copies[1:], threads=1)
    with pytest.raises(InputError, match="gives hidden_out to a package after it: expected logits"):
        CoremlRunner(*copies[:-1], threads=1)
    with pytest.raises(InputError, match="decode takes hidden_in as nothing: expected fp16"):
        CoremlRunner(copies[0], copies[0], copies[-1], threads=1)
    with pytest.raises(InputError, match="which a package before it has"):
        split.target.read(recognise(_renamed(copies, tmp_path / "twice"))[0])
    shutil.rmtree(copies[1])
    with pytest.raises(InputError, match=f"is not whole: '{copies[1].name}' is missing"):
        recognise(copies[0])
    copies[0].rename(tmp_path / "alone.mlpackage")
    with pytest.raises(InputError, match=r"says that it is part 1 of \d+, which its name does not"):
        recognise(tmp_path / "alone.mlpackage")


def _renamed(copies: list[Path], folder: Path) -> Path:
    """The parts of a model, the second of which is a copy of the third that says it is the second."""
    folder.mkdir()
    for copy in copies:
        shutil.copytree(copy, folder / copy.name)
    second = folder / copies[1].name
    shutil.rmtree(second)
    shutil.copytree(copies[2], second)
    model = second / "Data/com.apple.CoreML/model.mlmodel"
    count = len(copies)
    model.write_bytes(model.read_bytes().replace(b"3 of %d" % count, b"2 of %d" % count))
    return folder


def test_a_split_package_takes_the_place_of_a_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And the other way: nothing of the one before is left beside it."""
    checkpoint, out = make_checkpoint(tmp_path / "checkpoint", moe_config()), tmp_path / "out"
    command = [str(checkpoint), "-t", "coreml", "-q", "int8", "--context", "64", "--no-validate", "--out", str(out)]
    assert main(command) == 0
    assert main([*command, "--coreml-split", "400kB"]) == 0
    assert len(list(out.glob("*-of-*.mlpackage"))) > 2
    before = {path.name for path in out.glob("*.mlpackage")}
    assert main([*command, "--coreml-split", "400kB", "--skip-existing"]) == 0
    assert {path.name for path in out.glob("*.mlpackage")} == before
    assert main([*command, "--coreml-split", "500kB", "--overwrite"]) == 0
    assert main(["inspect", str(out), "--json"]) == 0, capsys.readouterr().err
