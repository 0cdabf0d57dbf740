"""The published schema and page are those of the keys, and agree with the reader."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import jsonschema
import pytest
from lfm_convert.convert.recipe.keys import RECIPE
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.convert.recipe.schema import page, schema
from lfm_convert.convert.release.wanted import expand
from lfm_convert.graph.errors import LfmConvertError
from lfm_convert.validate.budgets import DeviceClass
from lfm_convert.validate.lines import Lines
from lfm_convert.validate.suites import SUITES

DOCS = Path(__file__).parents[2] / "docs"
EXAMPLES = sorted((Path(__file__).parents[2] / "examples").glob("*.toml"))
GGUF = '[[artifacts]]\ntarget = "gguf"\n'
BAD = [
    "[devices.a]",
    "[devices.a]\nmax_siez = 1",
    "[devices.a]\nmax_size = 'big'",
    "[devices.a]\nmax_size = -1",
    "[devices.a]\nmax_size = 1\ncontext = 0",
    "[devices.a]\nmax_size = 1\ntargets = ['tflite']",
    "devices = 3",
    "[gates]\nmax_kdl = 1",
    "[gates.Q4_0]\nmax_kld = true",
    "[gates.Q4_0]",
    "[gates]\nmin_top1 = 90",
    "[gates]\nmax_kld = '10%'",
    "model = 3",
    "model = ''",
    "[models.a]\nrevision = 'b'",
    "artifacts = 3",
    "[artifacts]\ntarget = 'gguf'",
    "[[artifacts]]",
    "[[artifacts]]\ntarget = 'tflite'",
    GGUF + "quants = []",
    GGUF + "quants = 'Q4_0'",
    GGUF + "max_size = 4.8",
    GGUF + "options = { context = 3 }",
    GGUF + "options = { refine = 1 }",
    "[calibration]\ntext = ['a']\nchunk_size = 3",
    "[validation]\nsuite = 'big'",
    "[validation]\ntime_limit = 0.5",
    "[reports]\nhtml = ''",
    "[reports]\nxml = 'a'",
]
GOOD = [
    "model = 'x'",
    "[devices.a]\nmax_size = 1\nmax_memory = ' 2 GiB'\ncontext = 1\ntargets = ['gguf']\nquants = ['x']",
    "[gates]\nmax_kld = 1\nmin_top1 = '80%'\nmax_ppl_change = 0.5\n[gates.q8_0]\nmax_kld = 0",
    "[models.a]\nmodel = 'x'\nrevision = 'main'\nname = 'n'\ntoken = 'T'",
    GGUF + "quants = ['q4_0', 'all']\nlabel = 'a'\nfolder = '{model}'\nstrict = true\nmax_size = '1kB'",
    GGUF + "options = { split_max_size = '1GB', tensor_type = ['a=F16'], refine = true }",
    "[[artifacts]]\ntarget = 'executorch'\noptions = { context = 128 }",
    "[validation]\nsuite = 'smoke'\ntime_limit = 1\nmax_memory = 5",
]


def test_what_is_published_is_what_the_keys_say() -> None:
    """`python -m lfm_convert.convert.recipe.schema` writes both."""
    assert json.loads((DOCS / "recipe.schema.json").read_text()) == schema()
    text = (DOCS / "recipe.md").read_text()
    assert page(text) == text
    assert all(f"| `{key.name}` |" in text for table in RECIPE.walk() for key in table.keys)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("text", BAD)
def test_the_schema_refuses_what_the_reader_refuses(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    with pytest.raises(LfmConvertError):
        load_recipe(path)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tomllib.loads(text), schema())


@pytest.mark.parametrize("text", GOOD)
def test_the_schema_takes_what_the_reader_takes(text: str, tmp_path: Path) -> None:
    path = tmp_path / "a.toml"
    path.write_text(text)
    load_recipe(path)
    jsonschema.validate(tomllib.loads(text), schema())


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_the_examples_are_recipes(path: Path) -> None:
    assert expand(load_recipe(path))
    jsonschema.validate(tomllib.loads(path.read_text()), schema())


def test_the_example_of_the_page_is_one(tmp_path: Path) -> None:
    text = (DOCS / "recipe.md").read_text().partition("```toml\n")[2].partition("```")[0]
    path = tmp_path / "a.toml"
    path.write_text(text)
    assert [each.name.partition("/")[2] for each in expand(load_recipe(path))] == [
        "gguf/Q4_0", "gguf/Q4_K_M", "gguf/Q8_0", "onnx/q4f16"
    ]  # fmt: skip
    jsonschema.validate(tomllib.loads(text), schema())


def test_every_key_has_its_field() -> None:
    """What tables become takes all of their keys."""
    tables = {table.name: {key.name for key in table.keys} for table in RECIPE.walk()}
    assert tables["devices.NAME"] | {"name"} == set(DeviceClass.__dataclass_fields__)
    assert tables["gates"] | {"quants", "is_asked"} == set(Lines.__dataclass_fields__)
    assert SUITES == ("smoke", "standard")
