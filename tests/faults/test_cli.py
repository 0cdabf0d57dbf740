"""Nothing of a command line is dropped or guessed: repeated options, sizes, empty values, misspelt commands."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from lfm_convert.convert import pipeline
from lfm_convert.convert.cli.main import app, main
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.graph import WeightGraph
from lfm_convert.graph.opening import open_graph
from lfm_convert.targets.options import flag, kind_of, options_of
from lfm_convert.targets.target import get_target, target_names
from support.checkpoints import lfm3_config, make_checkpoint
from support.refusals import refused as raised
from typer.main import get_command

# Every option of `convert` that takes a value.
VALUES = [
    parameter.opts[0]
    for parameter in get_command(app).commands["convert"].params  # type: ignore[attr-defined]
    if parameter.param_type_name == "option" and not parameter.is_flag
]
# What no option of a kind takes: nothing, none of it, and values of another kind.
NOTHING: dict[type, list[Any]] = {
    bool: [None, 0, 1, "", "no"],
    int: [0, -1, "", True, 2.5, [4096]],
    str: ["", 0, False, ["Q8_0"]],
    tuple: ["", "ffn=Q8_0", [""], ["", "ffn=Q8_0"], 0, [0]],
}
OPTIONS = [
    pytest.param(target, name, value, id=f"{target} {name} {value!r}")
    for target in target_names()
    for name, (field, _) in options_of(get_target(target)).items()
    for value in NOTHING[kind_of(field)]
]


@pytest.fixture(scope="module")
def lfm3_graph(tmp_path_factory: pytest.TempPathFactory) -> WeightGraph:
    return open_graph(make_checkpoint(tmp_path_factory.mktemp("models") / "tiny-lfm3", lfm3_config()))


def plans(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict]:
    assert main(["plan", *map(str, arguments), "--json"]) == 0
    return json.loads(capsys.readouterr().out)["plans"]


def refused(capsys: pytest.CaptureFixture[str], code: int, sentence: str, *arguments: object) -> None:
    assert main([str(a) for a in arguments]) == code
    captured = capsys.readouterr()
    assert sentence in captured.err, captured.err
    assert captured.err.count("\n") == 1 and not captured.out


def test_every_quant_that_is_named_is_taken(
    tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["-q", "Q4_0", "-q", "Q8_0,Q6_K", "-q", "Q4_0"]
    found = plans(capsys, tiny_dense, "-t", "gguf", *named)
    assert [plan["quant"] for plan in found] == ["Q4_0", "Q8_0", "Q6_K"]
    assert main([str(tiny_dense), "-t", "gguf", *named, "--out", str(tmp_path / "o"), "--no-validate"]) == 0
    assert len(list((tmp_path / "o").glob("*.gguf"))) == 3
    capsys.readouterr()
    both = plans(capsys, tiny_dense, "-t", "onnx", "-q", "q4", "-q", "all")
    assert len(both) == len(get_target("onnx").policies)


@pytest.mark.parametrize(
    ("option", "values"),
    [
        ("--out", ["a", "b"]),
        ("--max-size", ["1GB", "2GB"]),
        ("--pre", ["a", "b"]),
        ("--jobs", ["1", "2"]),
    ],
)
def test_an_option_of_one_value_is_given_once(
    option: str, values: list[str], tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    usual = [] if option == "--target" else ["-t", "gguf"]
    given = [word for value in values for word in (option, value)]
    refused(capsys, 2, f"{option} is given 2 times: it takes one value", tiny_dense, *usual, *given)


@pytest.mark.parametrize(
    ("word", "meant"), [("plna", "plan"), ("valdiate", "validate"), ("convret", "convert"), ("Doctor", "doctor")]
)
def test_a_misspelt_command_is_named(
    word: str, meant: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    refused(capsys, 2, f"no command '{word}': did you mean '{meant}'?", word, "bundled:moe", "-t", "gguf")
    (tmp_path / word).mkdir()  # a folder of that name is a model
    refused(capsys, 5, "config.json", word, "-t", "gguf")


def test_a_hub_id_is_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    refused(capsys, 8, "LiquidAI/plna", "LiquidAI/plna", "-t", "gguf", "--offline")


@pytest.mark.parametrize("option", ["--max-size", "--max-file-size", "--max-memory", "--split-max-size"])
@pytest.mark.parametrize("size", ["4.8", "100000000", "0"])
def test_a_size_has_a_unit(
    option: str, size: str, tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sentence = f"size '{size}' has no unit; write it like 4.8GB, 700MiB or 123456B"
    refused(capsys, 2, sentence, tiny_dense, "-t", "gguf", option, size, "--out", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_size_in_a_recipe_has_a_unit_or_is_a_number(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text("[devices.a]\nmax_size = 123456\nmax_memory = '123456B'\n")
    device = load_recipe(path).devices["a"]
    assert (device.max_size, device.max_memory) == (123456, 123456)
    for text, reason in (("'4.8'", "has no unit"), ("4.8", "is 4.8"), ("-1", "0 or more"), ("''", "understood")):
        path.write_text(f"[devices.a]\nmax_size = {text}\n")
        with pytest.raises(InputError, match=reason):
            load_recipe(path)


def test_zero_is_a_value(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "out")]
    assert main([str(tiny_dense), "-t", "gguf", "--max-size", "0B", *out]) == 4
    assert main([str(tiny_dense), "-t", "gguf", "--max-file-size", "0B", *out]) == 4
    capsys.readouterr()
    refused(capsys, 2, "--split-max-size 0B: ", tiny_dense, "-t", "gguf", "--split-max-size", "0B", *out)
    refused(capsys, 2, "--split-max-size 0.5B: ", tiny_dense, "-t", "gguf", "--split-max-size", "0.5B", *out)
    refused(capsys, 2, "--max-memory 0 B is too little", tiny_dense, "-t", "onnx", "--max-memory", "0B", *out)
    refused(capsys, 2, "--context 0: expected 2 to", tiny_dense, "-t", "executorch", "--context", "0", *out)
    for target in ("gguf", "onnx", "mlx"):
        refused(capsys, 2, "has no option --context", tiny_dense, "-t", target, "--context", "0", *out)
    for target in ("onnx", "mlx", "executorch"):
        refused(capsys, 2, "has no option --split-max-size", tiny_dense, "-t", target, "--split-max-size", "0B", *out)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("target", "name", "value"), OPTIONS)
def test_an_option_is_not_nothing(target: str, name: str, value: object, lfm3_graph: WeightGraph) -> None:
    """As the API and recipes may give it, to a model with every block of LFM3."""
    with raised(flag(name), error=UsageError):
        configured = get_target(target).with_options({name: value})
        configured.plan(lfm3_graph, configured.default_quant)


@pytest.mark.parametrize("option", VALUES)
def test_an_empty_value_is_refused(
    option: str, tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    target = [] if option == "--target" else ["-t", "gguf"]
    refused(capsys, 2, f"the value of {option} is empty", tiny_dense, *target, option, "")
    refused(capsys, 2, f"the value of {option} is empty", tiny_dense, *target, f"{option}=")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--tensor-type", "=Q8_0"], 2, "--tensor-type =Q8_0: expected ROLE_OR_REGEX=TYPE"),
        (["--tensor-type", "ffn_down="], 2, "unknown type ''"),
        (["--metadata", "=x"], 2, "--metadata =x: expected KEY=VALUE"),
        (["--imatrix", "{empty}"], 5, "cannot be read as an importance matrix"),
        (["--quant", ","], 2, "unknown quant ''"),
        (["--quant", "all,"], 2, "unknown quant ''"),
        (["--quant", " "], 2, "unknown quant ''"),
        (["--recipe", "{empty}"], 5, "says nothing: expected model = "),
        (["--recipe", "{empty}", "--device", "phone"], 5, "or tables [devices.NAME] and [gates]"),
        (["--outfile", ".gguf"], 2, "expected the name of a file that ends in .gguf"),
    ],
)
def test_empty_parts_of_values_are_refused(
    arguments: list[str],
    code: int,
    sentence: str,
    tiny_dense: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    empty = tmp_path / "empty"
    empty.touch()
    monkeypatch.chdir(tmp_path)
    given = [argument.format(empty=empty) for argument in arguments]
    refused(capsys, code, sentence, tiny_dense, "-t", "gguf", *given)
    assert list(tmp_path.iterdir()) == [empty]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ("targets = []", "targets is []: expected a list of names"),  # it might mean all or none
        ("quants = []", "quants is []: expected a list of names"),
        ("context = 0", "context is 0"),
    ],
)
def test_a_device_class_of_nothing_is_refused(line: str, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f"[devices.a]\nmax_size = 1\n{line}\n")
    with raised(f"{path}:3: devices.a.", sentence):
        load_recipe(path)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"range_bytes": 0}, "range_bytes is 0"),
        ({"max_memory": 0}, "--max-memory 0 B is too little"),
        ({"quant": []}, "no quant is named"),
        ({"quant": ""}, "unknown quant ''"),
    ],
)
def test_python_converts_nothing_with_nothing(
    arguments: dict[str, Any], sentence: str, tiny_dense: Path, tmp_path: Path
) -> None:
    with raised(sentence, error=UsageError):
        pipeline.convert(str(tiny_dense), target="gguf", out=tmp_path / "out", validate_after=False, **arguments)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"artifacts": []}, "artifacts is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"time_limit_s": 0}, "time_limit_s is 0"),
        ({"time_limit_s": float("nan")}, "time_limit_s is nan"),
        ({"n_chunks": 3}, "--chunks 3: expected at least 1, of a text that is given"),
        ({"n_chunks": 0, "text": Path(__file__)}, "--chunks 0: expected at least 1"),
    ],
)
def test_nothing_is_validated_with_nothing(
    arguments: dict[str, Any], sentence: str, tiny_dense: Path, tmp_path: Path
) -> None:
    pipeline.convert(str(tiny_dense), target="gguf", quant="Q8_0", out=tmp_path / "out", validate_after=False)
    with raised(sentence, error=UsageError):
        pipeline.validate(**{"artifacts": [tmp_path / "out"], "reference": str(tiny_dense), **arguments})


def test_a_calibration_of_no_text_is_refused(
    tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["-o", str(tmp_path / "out.gguf")]
    for name, sentence in (("a.txt", "holds no text"), ("a.jsonl", "holds no conversation")):
        path = tmp_path / name
        path.touch()
        refused(capsys, 5, sentence, "calibrate", tiny_dense, "--text", path, *out)
    assert not (tmp_path / "out.gguf").exists()


def test_an_empty_model_is_refused(tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(tiny_dense)
    refused(capsys, 2, "is empty", "convert", "", "-t", "gguf", "--out", tmp_path / "out")
    (tmp_path / "lfm-convert.toml").write_text('model = ""\n')
    monkeypatch.chdir(tmp_path)
    refused(capsys, 5, "lfm-convert.toml:1: model is ''", "plan", "-t", "gguf")


@pytest.mark.parametrize("target", target_names())
def test_plan_and_convert_have_one_default(target: str, tiny_dense: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (found,) = plans(capsys, tiny_dense, "-t", target)
    assert found["quant"] == get_target(target).default_quant
    assert [plan.quant for plan in pipeline.plan(str(tiny_dense), target=target)] == [found["quant"]]


def test_an_unrelated_manifest_above_is_nobodys(
    tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outer, inner = tmp_path / "outer", tmp_path / "outer" / "deep" / "er"
    assert main([str(tiny_dense), "-t", "gguf", "-q", "Q8_0", "--out", str(outer), "--no-validate"]) == 0
    assert main([str(tiny_dense), "-t", "onnx", "-q", "fp32", "--out", str(inner), "--no-validate"]) == 0
    stray = shutil.copy(next(outer.glob("*.gguf")), outer / "deep" / "stray.gguf")
    capsys.readouterr()
    refused(capsys, 2, "stray.gguf has no manifest that says what it was made from", "validate", stray)
    other = Path(shutil.copy(stray, outer / "deep" / "stray.bin"))
    other.write_bytes(b"no format at all")
    refused(capsys, 5, f"{other}: no lfm-convert.json here or above lists it", "validate", other, "-r", tiny_dense)
    # one between a file and its own manifest, which does not list it, is passed over
    shutil.copy(outer / "lfm-convert.json", inner / "onnx")
    (inner.parent / "lfm-convert.json").write_text("{")
    assert [a.target for a in pipeline.find_artifacts(inner / "onnx" / "model.onnx")] == ["onnx"]


def test_inspect_shows_mlx_folders(tiny_moe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main([str(tiny_moe), "-t", "mlx", "-q", "4bit,bf16", "--out", str(out), "--no-validate"]) == 0
    for quant, kind in (("4bit", "affine 4 bit, groups of 64"), ("bf16", "BF16")):
        folder = out / f"{tiny_moe.name}-{quant}"
        capsys.readouterr()
        assert main(["inspect", str(folder), "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)["artifacts"]
        assert (row["target"], row["quant"]) == ("mlx", quant)
        alone = shutil.copytree(folder, tmp_path / f"alone-{quant}")
        assert main(["inspect", str(alone), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "mlx" and found["tensors"] == row["tensors"]
        assert kind in {each["type"] for each in found["types"]}
        assert main(["inspect", str(alone)]) == 0
        assert kind in capsys.readouterr().out


@pytest.mark.peers
def test_inspect_shows_what_mlx_lm_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mlx_lm = pytest.importorskip("mlx_lm")
    from lfm_convert.convert import bundled

    for quantize in (True, False):
        folder = tmp_path / f"quantized-{quantize}"
        mlx_lm.convert(str(bundled.path("moe")), str(folder), quantize=quantize)
        capsys.readouterr()
        assert main(["inspect", str(folder), "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        assert found["kind"] == "mlx"
        assert ("affine 4 bit, groups of 64" in {each["type"] for each in found["types"]}) is quantize


def test_a_checkpoint_is_no_mlx_folder(tiny_moe: Path, tiny_dense: Path, capsys) -> None:
    for folder in (tiny_moe, tiny_dense):
        assert main(["inspect", str(folder), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["kind"] == "checkpoint"
