"""Files, inputs and sizes of a package are what the plan, the documentation and Core ML say."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_convert.convert import convert
from lfm_convert.convert.cli.main import main
from lfm_convert.graph.errors import UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.coreml.evaluator.package import open_package
from lfm_convert.targets.coreml.package import MODEL, WEIGHTS
from lfm_convert.targets.coreml.recognise import packages_of
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import get_target
from support.checkpoints import dense_config, lfm3_config, make_checkpoint, moe_config

from .packages import Made, make

QUANTS = ("fp16", "int8", "int4", "int4-pal")
DOCS = Path(__file__).parents[3] / "docs" / "coreml.md"


@pytest.mark.parametrize(
    ("name", "quant", "at_most"),
    [
        ("lfm2-1.2b", "int4", 0.75e9),
        ("lfm2-1.2b", "fp16", 2.36e9),
        ("lfm2-8b-a1b", "int4", 4.95e9),
        ("lfm3-1.7b", "int8", 1.9e9),
    ],
)
def test_sizes_of_published_models(
    name: str, quant: str, at_most: float, published: Callable[[str], WeightGraph]
) -> None:
    plan = get_target("coreml").plan(published(name), quant)
    assert 0.9 * at_most < plan.total_bytes <= at_most
    assert not plan.fallbacks


@pytest.mark.parametrize("quant", QUANTS)
def test_two_builds_are_the_same_bytes(quant: str, tmp_path: Path) -> None:
    """Whatever the number of workers; `make` holds the plan to the byte."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", moe_config()))
    first = make(graph, quant, tmp_path / "first", context=64)
    plan = first.target.plan(graph, quant)
    first.target.write(plan, graph, tmp_path / "second", Execution(jobs=1, range_bytes=1 << 12))
    for file in plan.files:
        assert (tmp_path / "first" / file.path).read_bytes() == (tmp_path / "second" / file.path).read_bytes()


def test_a_plan_needs_neither_coremltools_nor_torch(tmp_path: Path) -> None:
    """Nor does writing: what looks through a package takes the message classes of coremltools by themselves."""
    folder = make_checkpoint(tmp_path / "checkpoint", dense_config())
    code = f"""
import sys
from pathlib import Path
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.stream import Execution
from lfm_convert.targets.target import get_target
target, graph = get_target("coreml"), open_graph(Path({str(folder)!r}))
out = Path({str(tmp_path / "out")!r})
out.mkdir()
target.write(target.plan(graph, "fp16"), graph, out, Execution())
print([name for name in ("coremltools", "torch") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def features(functions: object, name: str) -> dict[str, dict[str, tuple[int, list[int]]]]:
    function = next(each for each in functions if each.name == name)  # type: ignore[attr-defined]
    found = {}
    for kind in ("input", "output", "state"):
        arrays = {
            each.name: each.type.stateType.arrayType if kind == "state" else each.type.multiArrayType
            for each in getattr(function, kind)
        }
        found[kind] = {name: (array.dataType, list(array.shape)) for name, array in arrays.items()}
    return found


FLOAT32, INT32, FLOAT16 = 65568, 131104, 65552


def test_the_signature(made: Callable[..., Made]) -> None:
    package = made("dense", "fp16")
    functions = open_package(package.package).spec.description.functions
    windows, cache = (FLOAT16, [3, 2, 256]), {"kv_cache": (FLOAT16, [2, 2 * (256 + 16), 128])}
    assert features(functions, "decode") == {
        "input": {"input_ids": (INT32, [1, 1]), "position": (INT32, [1]), "conv_state_in": windows},
        "output": {"logits": (FLOAT32, [1, 1, 1024]), "conv_state_out": windows},
        "state": cache,
    }
    assert features(functions, "prefill") == {
        "input": {
            "input_ids": (INT32, [1, 16]),
            "position": (INT32, [1]),
            "n_tokens": (INT32, [1]),
            "conv_state_in": windows,
        },
        "output": {"logits": (FLOAT32, [1, 16, 1024]), "conv_state_out": windows},
        "state": cache,
    }


def test_all_states(made: Callable[..., Made]) -> None:
    package = made("dense", "fp16", coreml_state="all")
    found = features(open_package(package.package).spec.description.functions, "decode")
    assert set(found["input"]) == {"input_ids", "position"} and set(found["output"]) == {"logits"}
    assert found["state"]["conv_state"] == (FLOAT16, [3, 2, 256])
    plan = package.target.plan(package.graph, "fp16")
    assert any("for CPU and GPU" in note for note in plan.notes)


def test_windows_are_bounded(tmp_path: Path) -> None:
    """A layer in a window keeps what its next token sees beside itself; one that sees everything keeps the context."""
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", lfm3_config()))
    made = make(graph, "int8", tmp_path / "out", context=128, chunk=8)
    state = features(open_package(made.package).spec.description.functions, "decode")["state"]
    assert state == {"kv_cache": (FLOAT16, [2, (128 + 8) + 15, 2 * 48])}


def test_one_copy_of_the_weights(made: Callable[..., Made]) -> None:
    """Both functions, and table and head of a tied model, refer to the same bytes."""
    package = made("dense", "int8")
    plan = package.target.plan(package.graph, "int8")
    assert len([t for t in plan.tensors if t.role is not None]) == len(list(package.graph.weights()))
    assert (package.package / WEIGHTS).stat().st_size < 1.1 * sum(t.nbytes for t in plan.tensors if t.role is not None)


def test_metadata_and_model_config(made: Callable[..., Made]) -> None:
    package = made("lfm3", "int8")
    graph, config = package.graph, json.loads((package.artifact.folder / "model_config.json").read_text())
    said = open_package(package.package).spec.description.metadata
    own = dict(said.userDefined)
    assert (own["context"], own["chunk"], own["quant"], own["model_type"]) == ("256", "16", "int8", "lfm3")
    assert own["stop_token_ids"] == ",".join(map(str, graph.stop_ids)) and len(own["tokenizer_sha256"]) == 64
    assert said.author == "lfm-convert" and "int8" in said.shortDescription
    assert config["stop_token_ids"] == list(graph.stop_ids)
    described = config["packages"][package.package.name]
    assert (described["context"], described["chunk"]) == (256, 16)
    for name, function in described["functions"].items():
        found = features(open_package(package.package).spec.description.functions, name)
        for kind in ("input", "output", "state"):
            shapes = {each: value["shape"] for each, value in function[f"{kind}s"].items()}
            assert shapes == {each: shape for each, (_, shape) in found[kind].items()}


def test_a_folder_of_several(tmp_path: Path) -> None:
    """Packages of other options side by side, each described as it was written; the tokenizer as Swift reads it."""
    checkpoint = make_checkpoint(tmp_path / "checkpoint", dense_config())
    graph, out = open_graph(checkpoint), tmp_path / "out"
    for quant, options in (("int8", {"context": 64}), ("fp16", {"chunk": 8, "coreml_state": "all"})):
        convert(graph, target="coreml", quant=quant, out=out, options=options, validate_after=False)
    packages = json.loads((out / "model_config.json").read_text())["packages"]
    first, second = (packages[f"{graph.name}-{quant}.mlpackage"] for quant in ("int8", "fp16"))
    assert (first["context"], first["chunk"], second["chunk"]) == (64, 64, 8)
    assert list(first["functions"]["decode"]["states"]) == ["kv_cache"]
    assert list(second["functions"]["decode"]["states"]) == ["kv_cache", "conv_state"]
    tokenizer = json.loads((out / "tokenizer_config.json").read_text())
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (out / "tokenizer.json").is_file() and (out / "config.json").is_file()


def test_named_by_the_user(tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", dense_config()))
    plan = get_target("coreml").with_options({"outfile": "Chat-{ftype}.mlpackage"}).plan(graph, "int4")
    assert [file.path for file in plan.files] == [
        "Chat-int4.mlpackage/Manifest.json", f"Chat-int4.mlpackage/{MODEL}", f"Chat-int4.mlpackage/{WEIGHTS}",
    ]  # fmt: skip


def test_a_package_is_replaced_where_it_lies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is a folder, and yet the file that `--out` names."""
    checkpoint, out = make_checkpoint(tmp_path / "checkpoint", dense_config()), tmp_path / "Chat.mlpackage"
    command = [str(checkpoint), "-t", "coreml", "-q", "fp16", "--context", "64", "--no-validate", "--out", str(out)]
    assert main(command) == 0
    assert main(command) == 2 and "already exists" in capsys.readouterr().err
    assert main([*command[:4], "int8", *command[5:], "--overwrite"]) == 0
    assert {path.name for path in out.iterdir()} == {"Manifest.json", "Data"}
    assert main(["inspect", str(out), "--json"]) == 0


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"context": 1}, "--context 1: expected 2 to"),
        ({"context": 10**6}, "--context 1000000: expected 2 to"),
        ({"context": 32, "chunk": 33}, "--chunk 33: expected at most the context, 32"),
        ({"chunk": 1}, "--chunk 1: expected at least 2"),
        ({"coreml_state": "none"}, "--coreml-state is 'none': expected one of kv, all"),
    ],
)
def test_what_cannot_be(options: dict[str, object], sentence: str, tmp_path: Path) -> None:
    graph = open_graph(make_checkpoint(tmp_path / "checkpoint", dense_config()))
    with pytest.raises(UsageError, match=re.escape(sentence)):
        get_target("coreml").with_options(options).plan(graph, "int4")


def test_the_swift_of_the_documentation(made: Callable[..., Made]) -> None:
    """It feeds every input, reads every output and asks for both functions, by their names: of packages in turn, too."""
    swift = re.search(r"```swift\n(.*?)```", DOCS.read_text(), re.DOTALL)
    assert swift is not None
    fed = set(re.findall(r'"(\w+)": MLFeatureValue', swift[1])) | set(re.findall(r'given\["(\w+)"\] =', swift[1]))
    read = set(re.findall(r'featureValue\(for: "(\w+)"\)', swift[1]))
    asked = set(re.findall(r'functionName: "(\w+)"|load\("(\w+)"\)', swift[1]))
    split = made("dense", "int8", coreml_split="1500kB")
    inputs, outputs = set(), set()
    for package in packages_of(split.artifact):
        functions = open_package(package).spec.description.functions
        for name in ("decode", "prefill"):
            found = features(functions, name)
            inputs, outputs = inputs | set(found["input"]), outputs | set(found["output"])
    assert (fed, read) == (inputs, outputs)
    assert {name for pair in asked for name in pair if name} == {"decode", "prefill"}
