"""A release does what is left to do: once, again after a change of what it depends on, and to the end after any end."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.convert.release import running
from lfm_convert.convert.release.forecast import forecast
from lfm_convert.convert.release.outcome import End, Outcome, gravest
from lfm_convert.convert.release.prepared import prepare
from lfm_convert.convert.release.wanted import expand, matrix, select
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.convert.stopping import Stopped, forget_signals, on_signal
from lfm_convert.graph.errors import ExitCode, InputError, LfmConvertError, UsageError
from lfm_convert.graph.opening import open_graph
from support.checkpoints import dense_config, make_checkpoint
from support.releases import StandIn, tree

RECIPE = """
model = "{model}"
out = "out"
[validation]
suite = "smoke"
[[artifacts]]
target = "gguf"
quants = ["F16", "BF16"]
[[artifacts]]
target = "onnx"
quants = ["fp32"]
"""
ALL = ["F16", "BF16", "fp32"]


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> StandIn:
    return StandIn().install(monkeypatch.setattr)


@pytest.fixture
def recipe(tiny_dense: Path, tmp_path: Path) -> Path:
    path = tmp_path / "lfm-convert.toml"
    path.write_text(RECIPE.format(model=tiny_dense))
    return path


def release(recipe: Path, *only: str, **how: bool) -> Outcome:
    read = load_recipe(recipe)
    return running.carry_out(prepare(read, select(expand(read), only)), **how)


def edit(recipe: Path, old: str, new: str) -> None:
    text = recipe.read_text()
    assert old in text
    recipe.write_text(text.replace(old, new, 1))


def test_a_second_run_does_nothing(recipe: Path, stand_in: StandIn) -> None:
    first = release(recipe)
    assert (first.exit_code, stand_in.take(), stand_in.references) == (0, (ALL, ALL), 1)
    out = recipe.parent / "out"
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()}
    again = release(recipe)
    assert (again.exit_code, stand_in.take(), stand_in.references, again.n_done) == (0, ([], []), 1, 0)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file()} == before
    assert [r.to_json() for r in again.report.results] == [r.to_json() for r in first.report.results]


def test_a_changed_gate_judges_anew_and_runs_nothing(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    stand_in.take()
    manifest = recipe.parent / "out" / "tiny-dense-GGUF" / "lfm-convert.json"
    recipe.write_text(recipe.read_text() + "[gates.F16]\nmax_kld = 0.05\n")
    outcome = release(recipe)
    assert (outcome.exit_code, stand_in.take()) == (ExitCode.QUALITY, ([], []))
    verdicts = {e["quant"]: e["validation"]["verdict"] for e in json.loads(manifest.read_text())["artifacts"]}
    assert verdicts == {"F16": "fail", "BF16": "pass"}
    edit(recipe, "max_kld = 0.05", "max_kld = 0.5")
    assert (release(recipe).exit_code, stand_in.take()) == (0, ([], []))


def test_a_changed_budget_is_held_to_and_runs_nothing(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    stand_in.take()
    edit(recipe, 'target = "onnx"', 'target = "onnx"\nmax_size = "100MB"')
    outcome = release(recipe)
    assert [result.fit.value for result in outcome.report.results] == ["free", "free", "fits"]
    assert stand_in.take() == ([], [])


def test_a_changed_option_converts_what_it_is_about(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    before = tree(recipe.parent / "out")
    stand_in.take()
    edit(recipe, 'target = "onnx"', 'target = "onnx"\noptions = { onnx_caches = "stacked" }')
    try:
        release(recipe)
    except UsageError as error:  # whatever the other choice is called
        choice = str(error).rpartition(", ")[2]
        edit(recipe, '"stacked"', f'"{choice}"')
        release(recipe)
    assert stand_in.take() == (["fp32"], ["fp32"])
    after = tree(recipe.parent / "out")
    changed = {name for name in after if after[name] != before.get(name)}
    assert changed and all(name.startswith("tiny-dense-ONNX/") for name in changed)


def test_another_suite_compares_anew(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    stand_in.take()
    edit(recipe, 'suite = "smoke"', 'suite = "standard"')
    release(recipe)
    assert stand_in.take() == ([], ALL)


def test_another_checkpoint_replaces_all(recipe: Path, stand_in: StandIn, tmp_path: Path) -> None:
    model = make_checkpoint(tmp_path / "model" / "tiny-dense", dense_config(), seed=1)
    release(recipe)
    before = tree(tmp_path / "out")
    recipe.write_text(RECIPE.format(model=model))
    stand_in.take()
    assert release(recipe).exit_code == 0
    assert stand_in.take() == (ALL, ALL)
    after = tree(tmp_path / "out")
    assert set(after) == set(before) and all(after[name] != before[name] for name in after if name.endswith(".gguf"))


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_text("{"),
        lambda path: path.write_bytes(path.read_bytes()[:-40]),
        lambda path: path.write_text(path.read_text().replace('"made": {', '"made": {"a": "b", ')),
        lambda path: shutil.rmtree(path.parent),
    ],
    ids=["lost", "no JSON", "cut short", "changed", "all of it lost"],
)
def test_a_state_that_is_lost_or_damaged_is_work_done_again(
    damage: Callable[[Path], object], recipe: Path, stand_in: StandIn
) -> None:
    release(recipe)
    out = recipe.parent / "out"
    before = tree(out)
    damage(out / ".lfm-release" / "state.json")
    stand_in.take()
    assert release(recipe).exit_code == 0
    assert stand_in.take()[0] == ALL  # which finds them as they should be
    assert tree(out) == before
    assert (release(recipe).n_done, stand_in.take()) == (0, ([], []))


def test_a_damaged_result_is_measured_again(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    for path in (recipe.parent / "out" / ".lfm-release" / "results").iterdir():
        path.write_text(path.read_text().replace('"verdict": "pass"', '"verdict": "fail"'))
    stand_in.take()
    assert (release(recipe).exit_code, stand_in.take()) == (0, ([], ALL))


def test_what_is_gone_is_made_again(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    out = recipe.parent / "out"
    before = tree(out)
    next(out.rglob("*-F16.gguf")).unlink()
    (out / "tiny-dense-ONNX" / "config.json").unlink()
    stand_in.take()
    assert release(recipe).exit_code == 0
    assert stand_in.take() == (["F16", "fp32"], [])
    assert tree(out) == before


def test_what_was_changed_by_somebody_is_not_replaced(recipe: Path, stand_in: StandIn) -> None:
    release(recipe)
    out = recipe.parent / "out"
    before = tree(out)
    path = next(out.rglob("*-F16.gguf"))
    path.write_bytes(path.read_bytes() + b"mine")
    outcome = release(recipe)
    assert outcome.exit_code == ExitCode.USAGE
    assert path.read_bytes().endswith(b"mine")
    assert [result.verdict.value for result in outcome.report.results] == ["fail", "pass", "pass"]
    assert "--overwrite" in outcome.report.results[0].message
    assert release(recipe, overwrite=True).exit_code == 0
    assert tree(out) == before


def test_one_failure_stops_what_needs_it_alone(recipe: Path, stand_in: StandIn) -> None:
    stand_in.broken = {"F16": InputError("a shard is cut short")}
    recipe.write_text(recipe.read_text() + '[reports]\njunit = "r/junit.xml"\nhtml = "{out}/page.html"\n')
    outcome = release(recipe)
    assert (outcome.exit_code, stand_in.take()) == (ExitCode.BAD_INPUT, (ALL, ["BF16", "fp32"]))
    ends = {each.step.label: each.end for each in outcome.steps}
    assert ends["convert tiny-dense/gguf/F16"] is End.FAILED
    assert ends["validate tiny-dense/gguf/F16"] is End.SKIPPED
    for folder, name in (("r", "junit.xml"), ("out", "page.html")):
        assert "a shard is cut short" in (recipe.parent / folder / name).read_text()
    stand_in.broken = {}
    assert (release(recipe).exit_code, stand_in.take()) == (0, (["F16"], ["F16"]))


def test_reports_are_about_all_artifacts_and_written_when_they_change(recipe: Path, stand_in: StandIn) -> None:
    recipe.write_text(recipe.read_text() + '[reports]\njson = "r/report.json"\nmarkdown = "r/report.md"\n')
    release(recipe)
    path = recipe.parent / "r" / "report.json"
    assert [each["quant"] for each in json.loads(path.read_text())["artifacts"]] == ALL
    before = path.stat().st_mtime_ns
    release(recipe)
    assert path.stat().st_mtime_ns == before
    edit(recipe, '"F16", ', "")
    release(recipe)
    assert [each["quant"] for each in json.loads(path.read_text())["artifacts"]] == ALL[1:]


def test_a_report_of_several_models_names_them(
    tiny_dense: Path, tiny_moe: Path, tmp_path: Path, stand_in: StandIn
) -> None:
    path = tmp_path / "lfm-convert.toml"
    path.write_text(
        f'[models.a]\nmodel = "{tiny_dense}"\n[models.b]\nmodel = "{tiny_moe}"\nname = "other"\n'
        '[[artifacts]]\ntarget = "onnx"\nquants = ["fp32"]\n'
        '[reports]\nmarkdown = "r.md"\njunit = "r.xml"\njson = "r.json"\nhtml = "r.html"\n'
    )
    outcome = release(path)
    assert [each.title for each in outcome.report.results] == ["tiny-dense onnx fp32", "other onnx fp32"]
    assert sorted(each.name for each in (tmp_path / "release").iterdir() if each.name != ".lfm-release") == [
        "other-ONNX", "tiny-dense-ONNX"
    ]  # fmt: skip
    for name in ("r.md", "r.xml", "r.html"):
        assert all(f"{model} " in (tmp_path / name).read_text() for model in ("tiny-dense", "other")), name
    assert [each["model"] for each in json.loads((tmp_path / "r.json").read_text())["artifacts"]] == [
        "tiny-dense", "other"
    ]  # fmt: skip
    assert stand_in.references == 2


def test_only(recipe: Path, stand_in: StandIn) -> None:
    release(recipe, "onnx")
    assert stand_in.take() == (["fp32"], ["fp32"])
    release(recipe, "*/BF*")
    assert stand_in.take() == (["BF16"], ["BF16"])
    with pytest.raises(UsageError, match="--only Q4: matches none of tiny-dense/gguf/F16, tiny-dense/gguf/BF16"):
        release(recipe, "Q4")
    release(recipe)
    assert stand_in.take() == (["F16"], ["F16"])


def test_each_job_of_the_matrix_makes_one_artifact(recipe: Path) -> None:
    wanted = expand(load_recipe(recipe))
    jobs = matrix(wanted)["include"]
    assert [select(wanted, [job["only"]]) for job in jobs] == [(each,) for each in wanted]
    assert jobs[0] == {
        "only": "tiny-dense/gguf/F16", "model": "tiny-dense", "target": "gguf", "quant": "F16", "extra": "gguf"
    }  # fmt: skip


def test_a_forecast_writes_nothing(recipe: Path, stand_in: StandIn) -> None:
    def found() -> dict[str, bool]:
        read = load_recipe(recipe)
        steps = forecast(prepare(read, expand(read), weights=False)).steps
        assert all(each.cost.seconds >= 0 for each in steps)
        return {each.step.label: each.is_left for each in steps}

    assert set(found().values()) == {False} and len(found()) == 7
    assert [path.name for path in recipe.parent.iterdir()] == [recipe.name]
    release(recipe)
    before = tree(recipe.parent, hidden=True)
    assert set(found().values()) == {True}
    edit(recipe, '"F16", ', '"F16", "Q8_0", ')
    assert [label for label, is_left in found().items() if not is_left] == [
        "convert tiny-dense/gguf/Q8_0", "reference tiny-dense", "validate tiny-dense/gguf/Q8_0"
    ]  # fmt: skip
    recipe.write_text(RECIPE.format(model=load_recipe(recipe).model))
    assert tree(recipe.parent, hidden=True) == before


def test_calibration_is_measured_once(recipe: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    text = recipe.parent / "text.txt"
    text.write_text("the cat sat on the mat " * 40)
    recipe.write_text(
        recipe.read_text().replace('quants = ["F16", "BF16"]', 'quants = ["Q8_0", "Q4_0"]\ncalibrated = true', 1)
        + '[calibration]\ntext = ["text.txt"]\nchunk_size = 32\n'
    )
    from lfm_convert.convert.release import steps

    calls = []
    measure = steps.measure
    monkeypatch.setattr(steps, "measure", lambda *a, **k: (calls.append(1), measure(*a, **k))[1])
    assert release(recipe).exit_code == 0
    assert (stand_in.take()[0], len(calls)) == (["Q8_0", "Q4_0", "fp32"], 1)
    manifest = json.loads((recipe.parent / "out" / "tiny-dense-GGUF" / "lfm-convert.json").read_text())
    assert {e["options"]["imatrix"] for e in manifest["artifacts"]} == {"tiny-dense-imatrix.gguf"}
    release(recipe)
    assert (stand_in.take(), len(calls)) == (([], []), 1)
    text.write_text("another text " * 60)
    assert release(recipe).exit_code == 0
    assert (stand_in.take()[0], len(calls)) == (["Q8_0", "Q4_0"], 2)
    matrix_file = recipe.parent / "out" / "calibration" / "tiny-dense-imatrix.gguf"
    matrix_file.write_bytes(b"mine")
    outcome = release(recipe)
    assert (outcome.exit_code, matrix_file.read_bytes()) == (ExitCode.USAGE, b"mine")


def test_codes_are_tuned_once_and_names_say_so(recipe: Path, stand_in: StandIn, tiny_dense: Path) -> None:
    statistics = recipe.parent / "statistics"
    write_statistics(open_graph(tiny_dense), (), statistics, max_chunks=16)
    tune = 'quants = ["Q4_0"]\ntune = ["codes"]\noptions = { statistics = "statistics" }'
    edit(recipe, 'quants = ["F16", "BF16"]', tune)
    assert release(recipe).exit_code == 0
    assert stand_in.take()[0] == ["Q4_0", "fp32"]
    (entry,) = json.loads((recipe.parent / "out" / "tiny-dense-GGUF" / "lfm-convert.json").read_text())["artifacts"]
    assert entry["main_file"].endswith("-tuned-Q4_0.gguf") and entry["tuned"]["codes"]["tokens"] > 1024
    assert (release(recipe).exit_code, stand_in.take()) == (0, ([], []))
    edit(recipe, 'tune = ["codes"]\n', "")
    assert release(recipe).exit_code == 0
    assert stand_in.take()[0] == ["Q4_0"]


@pytest.mark.parametrize(
    ("old", "new", "line", "code", "part"),
    [
        ("{model}", "a/b/c", 1, 5, "no such folder, and not a hub id"),
        ("{model}", "bundled:big", 1, 2, "no bundled model 'big'"),
        ('quants = ["fp32"]', 'quants = ["fp32"]\nmax_size = "1kB"', 11, 4, "max_size: tiny-dense/onnx/fp32: "),
        ('quants = ["fp32"]', 'quants = ["fp32", "fp32"]\n[[artifacts]]\ntarget = "onnx"\nquants = ["fp32"]', 11, 2,
         "a second artifact is called tiny-dense/onnx/fp32, after that of"),
        ('quants = ["fp32"]', 'quants = ["fp32"]\n[[artifacts]]\ntarget = "onnx"\nquants = ["fp32"]\nlabel = "b"', 11, 2,
         "tiny-dense/onnx/fp32/b and tiny-dense/onnx/fp32 would both be"),
        ('quants = ["fp32"]', 'quants = ["fp32"]\nfolder = "../a"', 11, 5, "artifacts.folder is '../a': expected a"),
        ('quants = ["fp32"]', 'devices = ["a"]\n[devices.a]\nmax_memory = 5', 12, 4, "max_memory: tiny-dense/onnx"),
        ('quants = ["fp32"]', 'devices = ["a"]\n[devices.a]\nmax_size = 5\ntargets = ["gguf"]', 10, 2,
         "a is meant for none of tiny-dense/onnx/q4f16"),
        ('suite = "smoke"', 'prompts = "nothing.jsonl"', 4, 5, "nothing.jsonl"),
        ('suite = "smoke"', 'baseline = "nothing.json"', 4, 5, "not a baseline file"),
        ('quants = ["fp32"]', '[reports]\nhtml = "lfm-convert.toml"', 11, 2, "lfm-convert.toml is the recipe"),
        ('quants = ["fp32"]', '[reports]\nhtml = "a"\njunit = "./b/../a"', 12, 2, "a is the html report"),
        ('quants = ["fp32"]', '[reports]\njson = "out/tiny-dense-GGUF/lfm-convert.json"', 11, 2, "is the manifest of"),
        ('target = "gguf"', 'target = "gguf"\ncalibrated = true\n[calibration]\ntext = ["no.txt"]\n[[artifacts]]\n'
         'target = "gguf"', 9, 5, "calibration.text: "),
        ('model = "{model}"\nout = "out"', '[models.a]\nmodel = "{model}"\ntoken = "NO_SUCH_TOKEN"', 3, 2,
         "the environment has no NO_SUCH_TOKEN"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_before_any_work(
    old: str, new: str, line: int, code: int, part: str, tiny_dense: Path, tmp_path: Path, stand_in: StandIn
) -> None:
    path = tmp_path / "lfm-convert.toml"
    text = RECIPE.lstrip()
    assert old in text
    path.write_text(text.replace(old, new, 1).replace("{model}", str(tiny_dense)))
    with pytest.raises(LfmConvertError) as caught:
        release(path)
    assert part in str(caught.value)
    assert str(caught.value).startswith(f"{path}:{line}: "), caught.value
    assert (caught.value.exit_code, stand_in.take()) == (code, ([], []))
    assert [each.name for each in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("place", ["out", "cache"])
def test_a_read_only_folder_is_refused(
    place: str, recipe: Path, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    edit(recipe, 'suite = "smoke"', 'reference_cache = "cache"')
    folder = recipe.parent / place
    folder.mkdir()
    access = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: access(path, mode) and Path(path) != folder)
    line, key = {"out": (3, "out"), "cache": (5, "reference_cache")}[place]
    with pytest.raises(LfmConvertError, match=rf"toml:{line}: {key}: .*{place} is read-only") as caught:
        release(recipe)
    assert (caught.value.exit_code, stand_in.take()) == (ExitCode.DISK, ([], []))


def test_a_recipe_that_asks_for_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lfm-convert.toml"
    for text, part in (("model = 'a'", "asks for no artifacts"), ("[[artifacts]]\ntarget = 'gguf'", "names no model")):
        path.write_text(text)
        with pytest.raises(UsageError, match=part):
            expand(load_recipe(path))


def test_the_gravest_code_is_the_run_s() -> None:
    codes = [ExitCode.OK, ExitCode.MISSING_BACKEND, ExitCode.BUDGET, ExitCode.QUALITY, ExitCode.BAD_INPUT]
    assert [gravest(codes[: n + 1]) for n in range(len(codes))] == codes
    assert gravest([]) is ExitCode.OK


def test_a_run_that_is_killed_goes_on(recipe: Path) -> None:
    """At random moments of its own time, in a process of its own; the files are those of an undisturbed run."""
    command = [sys.executable, str(Path(__file__).parents[1] / "support" / "releases.py"), "release", str(recipe)]
    whole = [*command, "--out", str(recipe.parent / "whole")]
    start = time.monotonic()
    subprocess.run(whole, check=True, capture_output=True)
    seconds = time.monotonic() - start
    wanted = tree(recipe.parent / "whole")
    draw = random.Random(18)
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(draw.uniform(0.3, 1.0) * seconds)
        process.send_signal(signal.SIGKILL)
        process.wait()
        for name, sha256 in tree(recipe.parent / "out").items() if (recipe.parent / "out").exists() else ():
            assert sha256 == wanted[name] or name.endswith(".json"), name
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert tree(recipe.parent / "out") == wanted


def test_a_signal_of_which_a_library_makes_an_error_ends_the_run(
    recipe: Path, stand_in: StandIn, capsys: pytest.CaptureFixture[str]
) -> None:
    """Else its step would have failed, and the next begun. What is there is not lost for the next run."""
    convert = stand_in._convert

    def stopped(*arguments: object, **options: object) -> object:
        if stand_in.converted[-1] != "BF16":
            return convert(*arguments, **options)
        with suppress(Stopped):
            on_signal(signal.SIGTERM, None)
        raise ImportError("initialization failed")

    stand_in._convert = stopped
    assert main(["release", str(recipe)]) == 143
    assert stand_in.take() == (["F16", "BF16"], [])
    stand_in._convert = convert
    forget_signals()  # as a process of its own begins
    assert release(recipe).exit_code == 0
    assert stand_in.take() == (["BF16", "fp32"], ALL)
