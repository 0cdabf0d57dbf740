"""Cards of a release, and its publication to a local hub: after what was compared, and never without a verdict."""

from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from support.publishing_hub import Hub
from support.releases import StandIn, tree

RECIPE = """
out = "out"
model = "bundled:dense"
[[artifacts]]
target = "gguf"
quants = ["Q8_0", "Q4_0"]
{more}
[publish]
to = "{to}"
base_model = "Acme/base"
"""


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn().install(monkeypatch.setattr)


def recipe(folder: Path, more: str = "", to: str = "Acme/{model}-{TARGET}", publish: str = "") -> str:
    path = folder / "lfm-convert.toml"
    path.write_text(RECIPE.format(more=more, to=to) + publish)
    return str(path)


def folder_of(name: Path) -> Path:
    (manifest,) = (name / "out").glob("*/lfm-convert.json")
    return manifest.parent


def test_every_folder_gets_its_card_once(tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    assert main(["release", path]) == 0, capsys.readouterr().err
    card = folder_of(tmp_path) / "README.md"
    text = card.read_text()
    assert all(each in text for each in ("base_model: Acme/base", r"Q8\_0", r"Q4\_0"))
    before = tree(tmp_path / "out"), card.stat().st_mtime_ns
    assert main(["release", path]) == 0 and "nothing was left to do" in capsys.readouterr().out
    assert (tree(tmp_path / "out"), card.stat().st_mtime_ns) == before
    assert main(["release", path, "--only", "Q8_0"]) == 0
    assert card.read_text() == text  # the other one is in the folder, too, and passed


def test_a_card_of_the_users_is_not_replaced(
    tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    path = recipe(tmp_path)
    assert main(["release", path]) == 0
    card = folder_of(tmp_path) / "README.md"
    card.write_text("mine")
    assert main(["release", path]) == 2
    assert card.read_text() == "mine" and "README.md: is there, not as lfm-convert wrote it" in capsys.readouterr().err


def test_published_once(tmp_path: Path, stand_in: StandIn, hub: Hub, capsys: pytest.CaptureFixture[str]) -> None:
    path = recipe(tmp_path)
    assert main(["release", path, "--publish"]) == 0, capsys.readouterr().err
    ((name, repository),) = hub.repositories.items()
    folder = folder_of(tmp_path)
    assert name.startswith("Acme/") and name.endswith("-GGUF")
    sent = {file: data for file, data in repository.files().items() if file != ".gitattributes"}
    assert sent == {file: (folder / file).read_bytes() for file in sent} and "README.md" in sent
    n_commits = len(repository.commits)
    assert main(["release", path, "--publish"]) == 0
    assert len(repository.commits) == n_commits and stand_in.converted == ["Q8_0", "Q4_0"]


def test_nothing_is_sent_without_being_asked(tmp_path: Path, stand_in: StandIn, hub: Hub) -> None:
    assert main(["release", recipe(tmp_path)]) == 0
    assert not hub.repositories


def test_what_failed_is_neither_shown_nor_sent(
    tmp_path: Path, stand_in: StandIn, hub: Hub, capsys: pytest.CaptureFixture[str]
) -> None:
    """The line is changed after the first run, whose card is of the verdict of then."""
    assert main(["release", recipe(tmp_path)]) == 0
    strict = recipe(tmp_path, more="[gates.Q4_0]\nmax_kld = 1e-6")
    assert main(["release", strict, "--publish"]) == 3
    assert "nothing was sent" in capsys.readouterr().err and not hub.repositories
    assert stand_in.converted == ["Q8_0", "Q4_0"]


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"to": "Acme/{nobody}"}, 2, "there is no {nobody}"),
        ({"to": "no repository"}, 2, "is no repository of a hub"),
        ({"publish": 'branch = "x"\npull_request = true\n'}, 2, "a pull request is always against main"),
        ({"publish": 'sign_key = "nowhere.pem"\n'}, 5, "nowhere.pem: not found"),
        ({"more": '[[artifacts]]\ntarget = "onnx"\nquants = ["q4"]', "to": "Acme/all"}, 2, "write {TARGET} in it"),
    ],
)
def test_said_before_any_work(
    change: dict[str, str],
    code: int,
    said: str,
    tmp_path: Path,
    stand_in: StandIn,
    hub: Hub,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["release", recipe(tmp_path, **change), "--publish"]) == code
    told = capsys.readouterr().err
    assert said in told and "lfm-convert.toml" in told
    assert stand_in.converted == [] and not hub.repositories


def test_a_missing_token_is_said_before_any_work(
    tmp_path: Path, stand_in: StandIn, hub: Hub, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert main(["release", recipe(tmp_path), "--publish"]) == 2
    assert "no token for the hub" in capsys.readouterr().err and stand_in.converted == []


def test_nothing_to_publish_to(tmp_path: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lfm-convert.toml"
    path.write_text('model = "bundled:dense"\n[[artifacts]]\ntarget = "gguf"\n')
    assert main(["release", str(path), "--publish"]) == 2
    assert "expected a table [publish]" in capsys.readouterr().err
