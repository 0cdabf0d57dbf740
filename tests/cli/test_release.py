"""`lfm-convert release` and `init`, as they are typed."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from lfm_convert.convert.cli import release
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.convert.release.prepared import prepare
from lfm_convert.convert.release.wanted import expand
from lfm_convert.convert.starter import DEVICES
from lfm_convert.graph.errors import InputError
from rich.console import Console
from support.releases import StandIn

RECIPE = """
[models.a-model-of-a-very-long-name-indeed]
model = "{model}"
[[artifacts]]
target = "gguf"
quants = ["F16", "BF16"]
[validation]
suite = "smoke"
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn().install(monkeypatch.setattr)


@pytest.fixture
def here(tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a recipe in it."""
    (tmp_path / "lfm-convert.toml").write_text(RECIPE.format(model=tiny_dense))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    """What a terminal of eighty columns shows."""
    shown = io.StringIO()
    console = Console(file=shown, width=80, force_terminal=True, color_system=None, highlight=False)
    monkeypatch.setattr(release, "output", console)
    return shown


def test_a_release_is_told_within_eighty_columns(
    here: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str], narrow: io.StringIO
) -> None:
    assert main(["release"]) == 0
    said = capsys.readouterr()
    table = narrow.getvalue().splitlines()
    assert max(map(len, table)) <= 80
    assert "mean KLD 0.1" in narrow.getvalue() and "same top-1 80.00 %" in narrow.getvalue()
    assert table[-1] == "2 of 2 artifacts pass; 4 of 4 steps done; release" or "5 of 5" in table[-1]
    assert "convert a-model-of-a-very-long-name-indeed/gguf/F16: done in" in said.err
    assert main(["release"]) == 0
    assert "nothing was left to do" in narrow.getvalue()


def test_a_dry_run_is_told_within_eighty_columns(here: Path, narrow: io.StringIO) -> None:
    assert main(["release", "--dry-run"]) == 0
    table = narrow.getvalue().splitlines()
    assert max(map(len, table[:-1])) <= 80
    assert table[-1].startswith("5 of 5 steps to do: about ")
    assert [path.name for path in here.iterdir()] == ["lfm-convert.toml"]


def test_json_of_a_release(here: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "--dry-run", "--json"]) == 0
    planned = json.loads(capsys.readouterr().out)
    assert {each["kind"] for each in planned["steps"]} == {"convert", "reference", "validate"}
    assert planned["to_do"]["disk_bytes"] > 0 and planned["free_bytes"] > 0
    stand_in.broken = {"BF16": InputError("no such shard")}
    assert main(["release", "--json", "--out", "elsewhere"]) == 5
    done = json.loads(capsys.readouterr().out)
    assert (done["out"], done["exit_code"]) == ("elsewhere", 5)
    assert [each["verdict"] for each in done["artifacts"]] == ["pass", "fail"]
    assert done["artifacts"][0]["name"] == "a-model-of-a-very-long-name-indeed/gguf/F16"
    assert [each["end"] for each in done["steps"] if each["name"].endswith("/BF16")] == ["failed", "not reached"]


def test_the_matrix_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "--matrix", "--only", "F16"]) == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert [job["quant"] for job in json.loads(line)["include"]] == ["F16"]
    assert main(["release", "--matrix", "--dry-run"]) == 2


def test_what_is_wrong_is_said_first(here: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["release", "nothing.toml"]) == 5
    assert "nothing.toml: cannot be read" in capsys.readouterr().err
    path = here / "lfm-convert.toml"
    path.write_text(path.read_text().replace("BF16", "BF17"))
    assert main(["release"]) == 2
    assert capsys.readouterr().err.startswith("lfm-convert: lfm-convert.toml:6: artifacts.quants: unknown quant 'BF17'")
    assert stand_in.take() == ([], [])


@pytest.mark.parametrize("devices", [[], ["phone"], ["browser", "mac"], list(DEVICES)], ids=",".join)
def test_a_recipe_to_begin_with_can_be_carried_out(
    devices: list[str], tiny_moe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(tiny_moe), *(word for name in devices for word in ("--device", name))]) == 0
    recipe = load_recipe(Path("lfm-convert.toml"))
    wanted = expand(recipe)
    assert prepare(recipe, wanted, weights=False).artifacts
    meant = {target for name in devices for target in DEVICES[name].targets}
    assert not devices or {each.target.name for each in wanted} <= meant
    assert set(recipe.devices) == set(devices)
    assert all(set(entry.devices) <= set(devices) for entry in recipe.artifacts)


def test_a_recipe_names_its_model_from_where_it_lies(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tiny_dense)
    out = tmp_path / "sub" / "a.toml"
    assert main(["init", ".", "-o", str(out)]) == 0
    recipe = load_recipe(out)
    assert recipe.seen(Path(recipe.model or "")).samefile(tiny_dense)
    monkeypatch.chdir(tmp_path)
    assert main(["init"]) == 0
    assert load_recipe(Path("lfm-convert.toml")).model == "bundled:moe"


def test_init_replaces_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (here / "lfm-convert.toml").read_text()
    assert main(["init", "bundled:moe"]) == 2
    assert "lfm-convert.toml: already exists; --overwrite replaces it" in capsys.readouterr().err
    assert (here / "lfm-convert.toml").read_text() == before
    assert main(["init", "bundled:moe", "--device", "fridge", "--overwrite"]) == 2
    assert "--device fridge: expected some of phone, browser" in capsys.readouterr().err
    assert (here / "lfm-convert.toml").read_text() == before
    assert main(["init", "bundled:moe", "--overwrite"]) == 0
