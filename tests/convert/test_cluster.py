"""A release on a Dask cluster of two workers: the same files as on one machine, whatever becomes of a worker."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.release import dask_pool
from lfm_convert.convert.release.child import in_child
from lfm_convert.convert.release.machines import own_facts, refuse_missing, refuse_others
from lfm_convert.graph.errors import BackendError, LfmConvertError, NetworkError, UsageError
from support.releases import tree
from support.s3 import local_s3, stored, upload

distributed = pytest.importorskip("distributed", reason="the extra 'cluster' is not installed")

RECIPE = """
model = "{model}"
[validation]
prompts = "prompts.jsonl"
threads = 1
[gates]
max_kld = 20
[[artifacts]]
target = "gguf"
quants = ["Q8_0", "Q4_0"]
[[artifacts]]
target = "onnx"
quants = ["q4"]
"""


def write_recipe(folder: Path, model: object) -> Path:
    draw = random.Random(18)
    ids = [[draw.randrange(8, 500) for _ in range(60)] for _ in range(2)]
    lines = [f'{{"id": "{number}", "ids": {row}}}\n' for number, row in enumerate(ids)]
    (folder / "prompts.jsonl").write_text("".join(lines))
    path = folder / "lfm-convert.toml"
    path.write_text(RECIPE.format(model=model))
    return path


@pytest.fixture(scope="module")
def recipe(tiny_dense: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_recipe(tmp_path_factory.mktemp("recipe"), tiny_dense)


@pytest.fixture(scope="module")
def whole(recipe: Path) -> dict[str, str]:
    """What a run on one machine gives."""
    out = recipe.parent / "whole"
    assert main(["release", str(recipe), "--out", str(out)]) in (0, 3)
    return tree(out)


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with local_s3() as found:
        yield found


@pytest.fixture(scope="module")
def cluster(bucket: str) -> Iterator[Any]:
    """Two workers in processes of their own, which announce no memory and know the server that speaks S3."""
    with distributed.LocalCluster(
        n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None, silence_logs=50
    ) as found:
        yield found


def command(cluster: Any, recipe: Path, out: str) -> list[str]:
    return ["release", str(recipe), "--out", out, "--scheduler", cluster.scheduler_address]


@pytest.mark.slow
def test_two_workers_make_the_same_files(
    cluster: Any, recipe: Path, whole: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = command(cluster, recipe, str(tmp_path / "out"))
    assert main(words) in (0, 3)
    assert tree(tmp_path / "out") == whole
    assert main(words) in (0, 3)
    assert "nothing was left to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_store_gets_the_same_files(
    cluster: Any,
    bucket: str,
    tiny_dense: Path,
    whole: dict[str, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The checkpoint is read from there, too: workers need share no file system with who started the release."""
    upload(tiny_dense, f"{bucket}/models/tiny-dense")
    recipe = write_recipe(tmp_path, f"{bucket}/models/tiny-dense")
    words = command(cluster, recipe, f"{bucket}/out")
    assert main(words) in (0, 3)
    assert stored(f"{bucket}/out") == whole
    assert not [name for name in stored(f"{bucket}/out", hidden=True) if "/parts/" in name or "/inputs/" in name]
    assert main(words) in (0, 3)
    assert "nothing was left to do" in capsys.readouterr().out


@pytest.mark.slow
def test_a_worker_that_is_killed_is_replaced_by_another(
    cluster: Any, recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    process = started(cluster, recipe, tmp_path / "out")
    with distributed.Client(cluster) as client:
        address = busy(client)
        pid = client.run(os.getpid, workers=[address])[address]
        os.kill(pid, signal.SIGKILL)
        _, said = process.communicate(timeout=900)
        assert process.returncode in (0, 3), said
        assert address not in client.scheduler_info(n_workers=-1)["workers"]
    assert tree(tmp_path / "out") == whole


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_what_the_workers_do(
    number: int, cluster: Any, recipe: Path, whole: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = started(cluster, recipe, out)
    with distributed.Client(cluster) as client:
        busy(client)
        process.send_signal(number)
        _, said = process.communicate(timeout=300)
        assert process.returncode == 128 + number, said
        assert not any(client.run(dask_pool.under_way).values())
    found = tree(out) if out.exists() else {}
    assert all(whole[name] == sha256 for name, sha256 in found.items() if not name.endswith(".json"))
    assert not list(out.rglob("parts/*"))


def started(cluster: Any, recipe: Path, out: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "lfm_convert", *command(cluster, recipe, str(out))]
    return subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def busy(client: Any) -> str:
    """The address of a worker that carries a step out, once one does."""
    until = time.monotonic() + 300
    while time.monotonic() < until:
        for address, keys in client.run(dask_pool.under_way).items():
            if keys:
                time.sleep(0.5)
                return str(address)
        time.sleep(0.1)
    raise AssertionError("no step was begun")


@pytest.fixture(scope="module")
def small(bucket: str) -> Iterator[Any]:
    """A worker that announces a megabyte."""
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None, resources={"memory": 1e6}
    ) as found:
        yield found


def test_a_step_that_fits_no_worker_is_refused(
    small: Any, recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(small, recipe, str(tmp_path / "out"))) == UsageError.exit_code
    said = capsys.readouterr().err
    assert "of memory and fits no worker, nor 6 more steps: the largest announces 1.00 MB" in said
    assert not tree(tmp_path)


def test_a_worker_of_another_version_is_refused(
    small: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(dask_pool, "own_facts", lambda: {**own_facts(), "lfm-convert": "99.0", "numpy": "0.1"})
    assert main(command(small, recipe, str(tmp_path / "out"))) == BackendError.exit_code
    said = capsys.readouterr().err
    assert "here 99.0" in said and "here 0.1" in said and "install on all machines" in said
    assert not tree(tmp_path)


def test_a_worker_that_does_not_see_the_output_is_refused(
    small: Any, recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    demands = dask_pool.demands_of

    def elsewhere(*arguments: Any) -> dict[str, Any]:
        return {**demands(*arguments), "store": (tmp_path / "elsewhere").as_uri()}

    monkeypatch.setattr(dask_pool, "demands_of", elsewhere)
    assert main(command(small, recipe, str(tmp_path / "out"))) == 5
    assert "worker inproc://" in (said := capsys.readouterr().err) and "not found" in said
    assert not tree(tmp_path)


def test_a_step_whose_workers_are_lost_has_failed() -> None:
    from distributed.scheduler import KilledWorker

    class Lost:
        def result(self) -> None:
            raise KilledWorker("step", SimpleNamespace(address="tcp://b:1"), 3)

    outcome = dask_pool._outcome(Lost())
    assert outcome["code"] == NetworkError.exit_code
    assert outcome["sentence"].startswith("4 workers were lost while they had it, at last tcp://b:1: ")


def test_a_job_that_is_not_wanted_any_more_is_ended(tmp_path: Path) -> None:
    outcome = in_child({"step": "convert a"}, scratch=tmp_path, is_wanted=lambda: False)
    assert (outcome["code"], outcome["sentence"]) == (130, "convert a: was cancelled")
    assert not list(tmp_path.iterdir())


def test_what_workers_miss_is_said_in_their_words() -> None:
    found = {"tcp://b:1": {"missing": [(8, "s3://a: the store refuses")]}, "tcp://a:1": {"missing": []}}
    with pytest.raises(NetworkError, match=r"worker tcp://b:1: s3://a: the store refuses"):
        refuse_missing(found)
    others = {f"tcp://{name}:1": {"facts": {"Python": "3.12"}} for name in "ab"}
    with pytest.raises(BackendError, match=r"worker tcp://a:1 and 1 more: has Python 3.12, here 3.11"):
        refuse_others(others, {"Python": "3.11"})


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "tcp://no-such-host.invalid:8786", "nothing", "ftp://a:1"])
def test_a_scheduler_that_does_not_answer(address: str) -> None:
    with pytest.raises(LfmConvertError, match=f"--scheduler {address}: ") as caught:
        dask_pool.DaskPool(address, patience_s=1)
    assert caught.value.exit_code in (NetworkError.exit_code, UsageError.exit_code)


def test_a_store_without_credentials(
    bucket: str, recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    assert main(["release", str(recipe), "--out", f"{bucket}/private"]) == NetworkError.exit_code
    assert f"{bucket}/private" in (said := capsys.readouterr().err) and "no credentials" in said, said
