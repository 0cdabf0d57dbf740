"""A release whose output is a store: the same files as in a folder, whole at every moment, and nothing done twice."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.manifest import Manifest
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.convert.release.choosing import hands_of, opened_output
from lfm_convert.convert.release.machines import demands_of
from lfm_convert.convert.release.mirror import _kept
from lfm_convert.convert.release.outcome import Outcome
from lfm_convert.convert.release.output import Folder
from lfm_convert.convert.release.prepared import prepare
from lfm_convert.convert.release.running import carry_out
from lfm_convert.convert.release.wanted import expand
from lfm_convert.graph.errors import ExitCode, InputError, UsageError
from lfm_convert.graph.source.urls import open_url
from support.checkpoints import dense_config, make_checkpoint
from support.releases import StandIn, tree
from support.s3 import stored

RECIPE = """
model = "{model}"
[validation]
suite = "smoke"
[[artifacts]]
target = "gguf"
quants = ["F16", "Q8_0"]
[[artifacts]]
target = "onnx"
quants = ["fp32"]
[[artifacts]]
target = "gguf"
quants = ["Q4_0"]
calibrated = true
[calibration]
text = ["text.txt"]
chunk_size = 32
[reports]
markdown = "{{out}}/report.md"
[publish]
to = "org/{{model}}-{{TARGET}}"
base_model = "org/base"
"""
QUANTS = ["F16", "Q8_0", "fp32", "Q4_0"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn().install(monkeypatch.setattr)


@pytest.fixture
def recipe(tiny_dense: Path, tmp_path: Path) -> Path:
    (tmp_path / "text.txt").write_text("the cat sat on the mat " * 40)
    path = tmp_path / "lfm-convert.toml"
    path.write_text(RECIPE.format(model=tiny_dense))
    return path


@pytest.fixture
def url() -> Iterator[str]:
    """An empty folder in fsspec's memory."""
    found = f"memory://{uuid.uuid4().hex}/out"
    yield found
    remote = open_url(found)
    if remote.fs.exists(remote.path):
        remote.fs.rm(remote.path, recursive=True)


def release(recipe: Path, out: str | None = None, **how: Any) -> Outcome:
    read = load_recipe(recipe)
    with opened_output(read, out) as output:
        preparation = prepare(read, expand(read), output=output)
        return carry_out(preparation, hands=hands_of(output), **how)


def stamps(url: str) -> dict[str, object]:
    """When each file below a URL was written."""
    remote = open_url(url)
    return {name: info["created"] for name, info in remote.fs.find(remote.path, detail=True).items()}


def test_a_store_gets_what_a_folder_gets_and_a_second_run_does_nothing(
    recipe: Path, url: str, stand_in: StandIn, tmp_path: Path
) -> None:
    assert release(recipe, str(tmp_path / "whole")).exit_code == 0
    wanted = tree(tmp_path / "whole")
    wanted.pop("report.md")  # which is dated
    assert stand_in.take() == (QUANTS, QUANTS)
    assert release(recipe, url).exit_code == 0
    first = stored(url)
    assert first.pop("report.md") and first == wanted
    assert sorted(stand_in.take()[0]) == sorted(QUANTS)
    assert not [name for name in stored(url, hidden=True) if "/parts/" in name or "/inputs/" in name]
    before = stamps(url)
    again = release(recipe, url)
    assert stamps(url) == before
    assert (again.exit_code, again.n_done, stand_in.take()) == (0, 0, ([], []))
    # A changed line judges anew; what is gone is made again; another's file is left.
    recipe.write_text(recipe.read_text() + "[gates.F16]\nmax_kld = 0.05\n")
    assert (release(recipe, url).exit_code, stand_in.take()) == (ExitCode.QUALITY, ([], []))
    recipe.write_text(recipe.read_text().replace("0.05", "0.5"))
    remote = open_url(url)
    name = next(name for name in stored(url) if name.endswith("-F16.gguf"))
    remote.fs.rm_file((remote / name).path)
    assert (release(recipe, url).exit_code, stand_in.take()[0]) == (0, ["F16"])
    assert stored(url)[name] == wanted[name]
    remote.fs.pipe_file((remote / name).path, b"mine")
    outcome = release(recipe, url)
    assert outcome.exit_code == ExitCode.USAGE and "--overwrite replaces it" in outcome.report.results[0].message
    assert remote.fs.cat_file((remote / name).path) == b"mine"
    assert release(recipe, url, overwrite=True).exit_code == 0
    assert stored(url)[name] == wanted[name]


def test_another_checkpoint_replaces_all_and_no_manifest_lists_what_is_not_whole(
    recipe: Path, url: str, stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe.write_text(recipe.read_text().partition('[[artifacts]]\ntarget = "onnx"')[0])
    assert release(recipe, url).exit_code == 0
    before = stored(url)
    model = make_checkpoint(tmp_path / "model" / "tiny-dense", dense_config(), seed=1)
    recipe.write_text(recipe.read_text().replace(str(load_recipe(recipe).model), str(model)))
    remote = open_url(url)
    looks: list[int] = []

    def look(call: Any) -> Any:
        def wrapped(*arguments: Any, **options: Any) -> Any:
            found = call(*arguments, **options)
            for name in stored(url):
                if name.endswith("lfm-convert.json"):
                    folder = name.rpartition("/")[0]
                    manifest = json.loads(remote.fs.cat_file((remote / name).path))
                    for file in (file for each in manifest["artifacts"] for file in each["files"]):
                        assert stored(url)[f"{folder}/{file['path']}"] == file["sha256"]
                    looks.append(len(manifest["artifacts"]))
            return found

        return wrapped

    for name in ("cp_file", "pipe_file", "rm_file"):
        monkeypatch.setattr(type(remote.fs), name, look(getattr(type(remote.fs), name)))
    assert release(recipe, url).exit_code == 0
    after = stored(url)
    assert set(after) == set(before) and set(looks) == {1, 2}
    assert all(after[name] != before[name] for name in after if name.endswith(".gguf"))


def test_what_is_cut_off_on_its_way_is_refused(
    recipe: Path, url: str, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    fs = type(open_url(url).fs)
    put = fs.put_file

    def cut(self: Any, lpath: str, rpath: str, **options: Any) -> None:
        put(self, lpath, rpath, **options)
        if rpath.endswith("-Q8_0.gguf"):
            self.pipe_file(rpath, self.cat_file(rpath)[:-1])

    monkeypatch.setattr(fs, "put_file", cut)
    outcome = release(recipe, url)
    assert outcome.exit_code == ExitCode.NETWORK
    failed = next(result for result in outcome.report.results if result.artifact.quant == "Q8_0")
    assert "the store holds other bytes than were sent" in failed.message
    assert not [name for name in stored(url, hidden=True) if name.endswith("-Q8_0.gguf")]
    assert [name for name in stored(url) if name.endswith("-F16.gguf")]


def test_a_dry_run_reads_a_store_and_writes_nothing(
    recipe: Path, url: str, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["release", str(recipe), "--out", url, "--dry-run"]) == 0
    assert "free on the disk" not in capsys.readouterr().out
    assert stored(url, hidden=True) == {}


@pytest.mark.parametrize(
    ("out", "kind", "part"),
    [
        ("nothing://bucket/a", UsageError, "no store is known by nothing://"),
        ("hf://org/name", UsageError, "a hub gets what was validated"),
    ],
)
def test_a_store_that_cannot_be(out: str, kind: type[Exception], part: str, recipe: Path, stand_in: StandIn) -> None:
    with pytest.raises(kind, match=part):
        release(recipe, out)
    recipe.write_text(f'out = "{out}"\n{recipe.read_text()}')
    with pytest.raises(kind, match=r"lfm-convert.toml:1: out: "):
        release(recipe)
    assert stand_in.take() == ([], [])


def test_a_folder_is_seen_from_elsewhere_as_it_is_called() -> None:
    for name in ("/a b/c#d", "/a%20b", "/ä/b?c", "/a::b"):
        store = Folder(Path(name)).store
        assert (store.here, (store / "x").here) == (Path(name), Path(name) / "x")


def test_other_adapters_are_another_checkpoint() -> None:
    """In a store as in a folder: what was made with others does not stay beside a new artifact, nor is it lost unasked."""
    files = [{"path": "config.json", "bytes": 2, "sha256": "a"}]
    adapter = {"name": "style", "kind": "LoRA", "files": [{"path": "adapter_config.json", "bytes": 2, "sha256": "b"}]}
    plain = {"name": "base", "files": files}
    merged = {**plain, "adapters": [adapter], "merging": {"weights": [1.0], "dtype": None}}
    made, stays = ({"main_file": f"{name}.gguf"} for name in ("new", "old"))

    def kept(source: dict[str, Any], *, renews: set[str]) -> list[Any]:
        beside = SimpleNamespace(beside=lambda artifact: renews)
        step: Any = SimpleNamespace(artifact=None, site=SimpleNamespace(preparation=beside))
        old = Manifest(Path("out"), plain, (stays,))
        return _kept(old, Manifest(Path("out"), source, (made,)), made, step, where="s3://bucket/out")

    assert kept(plain, renews=set()) == [stays]
    assert kept(merged, renews={"old.gguf"}) == []
    with pytest.raises(UsageError, match="holds artifacts of another checkpoint"):
        kept(merged, renews=set())


def test_machines_must_see_adapters_too(tiny_dense: Path, tmp_path: Path) -> None:
    (tmp_path / "style").mkdir()
    path = tmp_path / "lfm-convert.toml"
    path.write_text(f'[models.a]\nmodel = "{tiny_dense}"\nadapters = ["style"]\n[[artifacts]]\ntarget = "gguf"\n')
    recipe = load_recipe(path)
    output = SimpleNamespace(store=SimpleNamespace(url="file:///out"))
    preparation: Any = SimpleNamespace(
        recipe=recipe, output=output, artifacts=[SimpleNamespace(wanted=each) for each in expand(recipe)]
    )
    assert demands_of(preparation, ("probe", "0"))["folders"] == sorted([str(tiny_dense), str(tmp_path / "style")])


def test_nothing_is_published_from_a_store(recipe: Path, url: str, stand_in: StandIn) -> None:
    with (
        opened_output(load_recipe(recipe), url) as output,
        pytest.raises(UsageError, match="copy the folder, and send"),
    ):
        hands_of(output, publishes=True)


def test_a_step_that_was_sent_sees_the_same_checkpoint(recipe: Path, stand_in: StandIn, tmp_path: Path) -> None:
    """It reads it for itself, and refuses another."""
    from lfm_convert.convert.release.errands import Errands
    from lfm_convert.convert.release.jobs import carry_out as carry_job_out
    from lfm_convert.convert.release.planning import site_of, steps_of

    read = load_recipe(recipe)
    with opened_output(read, str(tmp_path / "out")) as output:
        steps = steps_of(site_of(prepare(read, expand(read), output=output)))
        step = next(step for step in steps if step.label == "convert tiny-dense/gguf/F16")
        job = json.loads(json.dumps(Errands(step.site).job(step).to_json()))
    job["sources"] = dict.fromkeys(job["sources"], "0" * 64)
    outcome = carry_job_out(job, tmp_path / "scratch")
    assert outcome["code"] == InputError.exit_code and "another checkpoint lies there" in outcome["sentence"]
    assert stand_in.take() == ([], [])
