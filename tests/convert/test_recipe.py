"""A recipe is understood whole, or refused with its file, the line and what is not understood."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.recipe.places import find_places
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.graph.errors import LfmConvertError
from lfm_convert.targets.target import target_names
from lfm_convert.validate.lines import Lines

GGUF = '[[artifacts]]\ntarget = "gguf"\n'


@pytest.mark.parametrize(
    ("text", "line", "code", "part"),
    [
        ("[devices.a]", 1, 5, "[devices.a] sets no limit"),
        ("[devices.a]\nmax_siez = 1", 2, 5, "[devices.a] has the unknown key 'max_siez': did you mean 'max_size'"),
        ("[devices.a]\nmax_size = 'big'", 2, 5, "devices.a.max_size: size 'big' is not understood"),
        ("[devices.a]\nmax_size = 1\ncontext = 0", 3, 5, "devices.a.context is 0: expected a number, 1 or more"),
        ("[devices.a]\nmax_size = 1\ntargets = 'gguf'", 3, 5, "devices.a.targets is 'gguf': expected a list of names"),
        ("[devices.a]\nmax_size = 1\ntargets = ['tflite']", 3, 2, "no target 'tflite': expected some of gguf, onnx"),
        ("devices = 3", 1, 5, "[devices] is no table, but 3: expected tables [devices.NAME]"),
        ("[gates]\nmax_kdl = 1", 2, 5, "[gates] has the unknown key 'max_kdl'"),
        ("[gates.Q4_0]\nmax_kld = true", 2, 5, "gates.Q4_0.max_kld is true: expected a number of nats"),
        ("[gates]\nmax_kld = 1" + 400 * "0", 2, 5, "gates.max_kld is 1000"),
        ("[gates]\nmax_kld = '10%'", 2, 5, "gates.max_kld is '10%': expected a number of nats"),
        ("[gates]\nmax_kld = nan", 2, 5, "gates.max_kld is nan"),
        ("[gates.Q9_9]\nmax_kld = 1", 1, 2, "no target has a quant 'Q9_9'"),
        ("[gates.Q4_0]", 1, 5, "[gates.Q4_0] sets no limit"),
        ("[gate]\nmax_kld = 1", 1, 5, "unknown key 'gate': did you mean 'gates'"),
        ("[gates]\nmin_top1 = 90", 2, 5, "gates.min_top1 is 90: expected a fraction like 0.9, or 90%"),
        ("[gates]\nmin_top1 = 'most'", 2, 5, "no fraction"),
        ("gates = 3", 1, 5, "[gates] is no table, but 3"),
        ("\n\nmodel = 3", 3, 5, "model is 3: expected a text"),
        ("revision = 'x'", 1, 5, "revision is of `model`"),
        ("model = 'x'\n[models.a]\nmodel = 'b'", 1, 5, "model and [models.a] are given"),
        ("[models.a]\nrevision = 'b'", 1, 5, "[models.a] has no 'model': expected a text"),
        ("artifacts = 3", 1, 5, "'artifacts' is no list of tables: expected [[artifacts]]"),
        ("[artifacts]\ntarget = 'gguf'", 1, 5, "'artifacts' is no list of tables"),
        ("[[artifacts]]", 1, 5, "[[artifacts]] has no 'target': expected the name of a target"),
        ("[[artifacts]]\ntarget = 'tflite'", 2, 2, "artifacts.target: no target 'tflite': expected some of gguf"),
        (
            GGUF + "\n# why\nquants = [\n 'Q4_0',\n 'Q4_K',\n]",
            5,
            2,
            "artifacts.quants: unknown quant 'Q4_K' for target",
        ),
        (GGUF + "quants = []", 3, 5, "artifacts.quants is []: expected a list of names"),
        (GGUF + "models = ['a']", 3, 2, "artifacts.models: no model 'a': expected some of none"),
        (GGUF + "devices = ['a']", 3, 2, "artifacts.devices: no device class 'a'"),
        (GGUF + "calibrated = true", 3, 5, "artifacts.calibrated: there is no [calibration]"),
        (GGUF + "options = { context = 3 }", 3, 2, "artifacts.options: target gguf has no option --context"),
        (GGUF + "[artifacts.options]\nrefine = 1", 3, 2, "artifacts.options: --refine is 1: expected true or false"),
        (GGUF + GGUF + "max_size = '4.8'", 5, 5, "artifacts.max_size: size '4.8' has no unit"),
        (GGUF + "[calibration]\ntext = ['a']", 3, 5, "[calibration] measures what no artifact uses"),
        ("[calibration]\ntext = 'a'", 2, 5, "calibration.text is 'a': expected a list of paths"),
        ("[validation]\nsuite = 'big'", 2, 5, "validation.suite is 'big': expected smoke or standard"),
        ("[validation]\ntime_limit = 0.5", 2, 5, "validation.time_limit is 0.5: expected a number of seconds"),
        ("[reports]\nhtml = ''", 2, 5, "reports.html is '': expected the path of a file"),
        ("[reports]\nxml = 'a'", 2, 5, "[reports] has the unknown key 'xml'"),
    ],
)
def test_what_is_malformed_is_refused(tmp_path: Path, text: str, line: int, code: int, part: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(LfmConvertError) as caught:
        load_recipe(path)
    assert str(caught.value).startswith(f"{path}:{line}: ")
    assert part in str(caught.value)
    assert (caught.value.exit_code, str(caught.value).count("\n")) == (code, 0)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("[devices.a", "as TOML"),
        ("\na = ]", r"toml:2: cannot be read as TOML: Invalid value \(at line 2"),
        ("", "says nothing: expected model"),
    ],
)
def test_what_is_no_toml_is_refused(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(text)
    with pytest.raises(LfmConvertError, match=part) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value) and caught.value.exit_code == 5


def test_calibration_without_a_text(tmp_path: Path) -> None:
    """Then it is that which comes with the tool."""
    path = tmp_path / "r.toml"
    path.write_text('[calibration]\nmax_chunks = 3\n[[artifacts]]\ntarget = "gguf"\ncalibrated = true\n')
    found = load_recipe(path)
    assert found.artifacts[0].calibrated and found.calibration == {"max_chunks": 3}


@pytest.mark.parametrize("target", target_names())
def test_a_target_that_weighs_no_columns_is_not_calibrated(tmp_path: Path, target: str) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(f'[calibration]\ntext = ["a"]\n[[artifacts]]\ntarget = "{target}"\ncalibrated = true\n')
    if target in ("gguf", "onnx", "mlx"):
        assert load_recipe(path).artifacts[0].calibrated
    else:
        with pytest.raises(LfmConvertError, match=rf":5: artifacts.calibrated: target {target} weighs no columns"):
            load_recipe(path)


def test_lines_of_a_recipe_of_its_quants_and_of_the_command(tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text('[gates]\nmax_kld = 0.1\nmin_top1 = "80%"\n[gates.q8_0]\nmax_kld = 0.01\n')
    lines = load_recipe(path).lines
    assert lines.of("Q4_0") == Lines(max_kld=0.1, min_top1=0.8)
    assert lines.of("Q8_0") == Lines(max_kld=0.01, min_top1=0.8)
    asked = lines.replaced_by(Lines(max_kld=1.0))
    assert asked.of("Q8_0") == asked.of("Q4_0") == Lines(max_kld=1.0, min_top1=0.8)


TEXT = '''# a = 1
model = "x"

[models.a]
model = """
[models.b]
b = 1
"""
[[artifacts]]
target = "gguf"  # [[artifacts]]
quants = [
  "Q4_0",
  # [x]
]
[artifacts.options]
refine = true
[[artifacts]]
options = { a = 1, b.c = 2 }
x = [ {a = 1},
 {b = 2} ]
[gates."Q 4"]
a.b.c = 1
'''


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_of_keys(end: str) -> None:
    places = find_places(TEXT.replace("\n", end))
    for key, line in {
        ("model",): 2,
        ("models", "a"): 4,
        ("models", "a", "model"): 5,
        ("artifacts", 0): 9,
        ("artifacts", 0, "quants"): 11,
        ("artifacts", 0, "options", "refine"): 16,
        ("artifacts", 0, "folder"): 9,  # not there: its table
        ("artifacts", 1): 17,
        ("artifacts", 1, "options", "b", "c"): 18,
        ("artifacts", 1, "x", 1, "b"): 19,
        ("gates", "Q 4", "a", "b"): 22,
        ("nothing",): 1,
    }.items():
        assert places.line(key) == line, key
