"""Publishing: a destination is absent or whole, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from lfm_convert.convert import destination
from lfm_convert.convert.destination import Staging, owned, published_alone, settle
from lfm_convert.graph.errors import DiskError


def _tree(folder: Path, *, hidden: bool = True) -> dict[str, str]:
    """Texts of the files by path; without the hidden ones that an interrupted run leaves to the next."""
    found = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file()}
    return {name: p.read_text() for name, p in found.items() if hidden or not name.startswith(".")}


@contextmanager
def _staged(out: Path, *, n_bytes: int = 10) -> Iterator[Staging]:
    with owned(out) as folder:
        folder.need({"a": n_bytes})
        with folder.stage() as staging:
            yield staging


def _publish(out: Path, content: dict[str, str], *, remove: tuple[str, ...] = ()) -> None:
    with _staged(out) as staging:
        for name, text in content.items():
            path = staging.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
        with published_alone(out):
            staging.publish(remove=remove)


def test_new_files_join_the_old(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    _publish(out, {"a": "1", "onnx/b": "2", "onnx/b_1": "3"})
    _publish(out, {"onnx/b": "4"}, remove=("onnx/b_1", "onnx/b"))
    assert _tree(out) == {"a": "1", "onnx/b": "4"}
    assert [p.name for p in out.parent.iterdir()] == ["out"]


def test_failure_leaves_the_old_untouched(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    with pytest.raises(RuntimeError), _staged(out) as staging:
        (staging.folder / "a").write_text("half")
        raise RuntimeError
    assert _tree(tmp_path) == {"out/a": "old"}


def test_failure_of_a_first_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), _staged(tmp_path / "out"):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


class _Signal(BaseException):
    """What a signal's handler raises, wherever the program stands."""


@pytest.mark.parametrize("is_new", [True, False], ids=["new", "existing"])
def test_a_signal_at_any_line_leaves_nothing(tmp_path: Path, *, is_new: bool) -> None:
    reached, n_lines = True, 0
    while reached:
        n_lines += 1
        folder = tmp_path / str(n_lines)
        out = folder / "deep" / "out"
        folder.mkdir()
        if not is_new:
            _publish(out, {"a": "old"})
        before = set(folder.rglob("*"))
        reached = _stopped_at(n_lines, out)
        # Before the line that removes a lock it stays, empty: the next run takes it and removes it.
        locks = set(out.glob("*.lock"))
        around = {parent for lock in locks for parent in lock.parents}
        assert set(folder.rglob("*")) - locks - around == before - around, f"line {n_lines} on the way"
        assert all(lock.stat().st_size == 0 for lock in locks)
    assert n_lines > 30


def _stopped_at(n_lines: int, out: Path) -> bool:
    """Stages a file, as if a signal came before the n-th line of the module; whether it is reached while that is set up."""
    seen = 0

    def tracer(frame: FrameType, event: str, _: object) -> Callable[..., object] | None:
        nonlocal seen
        if frame.f_code.co_filename != destination.__file__:
            return None
        seen += event == "line"
        if event == "line" and seen == n_lines:
            raise _Signal
        return tracer

    sys.settrace(tracer)
    try:
        with _staged(out) as staging:
            sys.settrace(None)
            (staging.folder / "a").write_text("half")
            raise RuntimeError
    except _Signal:
        return True
    except RuntimeError:
        return False
    finally:
        sys.settrace(None)


def _in_another_process(script: str) -> None:
    """A process that may kill itself: a fork of this one, which has threads, could wait for a lock forever."""
    head = "import os, signal\nfrom lfm_convert.convert.destination import owned, published_alone\n"
    subprocess.run([sys.executable, "-c", head + textwrap.dedent(script)], check=False, timeout=60)


@pytest.mark.parametrize("n_moved", range(4))
def test_interrupted_renames_are_finished_by_the_next_run(tmp_path: Path, n_moved: int) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old", "b": "old", "c": "old"})
    _in_another_process(f"""
        from pathlib import Path
        real, moved = Path.replace, []

        def replace(self, target):
            if len(moved) == {n_moved}:
                os.kill(os.getpid(), signal.SIGKILL)
            moved.append(self)
            return real(self, target)

        Path.replace = replace
        with owned(Path({str(out)!r})) as destination, destination.stage() as staging:
            for name in "abc":
                (staging.folder / name).write_text("new")
            with published_alone(destination.folder):
                staging.publish()
    """)
    settle(out)
    assert _tree(out, hidden=False) == dict.fromkeys("abc", "new")


def test_killed_before_the_record_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    _in_another_process(f"""
        from pathlib import Path
        with owned(Path({str(out)!r})) as destination, destination.stage() as staging:
            (staging.folder / "a").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    """)
    _publish(out, {"b": "new"})
    assert _tree(tmp_path) == {"out/a": "old", "out/b": "new"}


def test_leftovers_of_a_finished_run_are_swept_by_one_with_nothing_to_do(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    (out / ".lfm-partial").mkdir()
    (out / ".lfm-partial" / "work.json").write_text('"plan"')
    with owned(out):
        pass
    assert _tree(out) == {"a": "old"}


def test_a_record_cut_short_moves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    staging = out / ".lfm-partial"
    (staging / "new").mkdir(parents=True)
    (staging / "new" / "a").write_text("new")
    (staging / "commit.json").write_text(json.dumps({"moves": {"a": ".lfm-partial/new/a"}, "remove": []})[:-3])
    settle(out)
    assert _tree(out, hidden=False) == {"a": "old"}
    _publish(out, {"b": "new"})
    assert _tree(tmp_path) == {"out/a": "old", "out/b": "new"}


def test_two_runs_do_not_mix(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from lfm_convert.graph.errors import DiskError
        from lfm_convert.convert.destination import owned
        try:
            with owned(Path({str(tmp_path / "out")!r})):
                print("entered")
        except DiskError as error:
            print(error)
    """
    with _staged(tmp_path / "out"):
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )
    assert "another run is writing there" in found.stdout


def test_too_little_room_is_said_first(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"needs 1000000 GB, and .* is free"),
        _staged(tmp_path / "out", n_bytes=10**15),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_disk_full_on_the_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    with pytest.raises(DiskError, match="no space left"), _staged(out) as staging:
        (staging.folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _tree(tmp_path) == {"out/a": "old"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DiskError, match="is a file"), _staged(tmp_path / "out"):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_mode_honours_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _publish(tmp_path / "out", {"a": "1"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o640


def test_a_signal_during_a_sweep_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is raised between two files that are removed; what is left is removed before it goes on its way."""
    for name in ("a", "b", "c"):
        (tmp_path / ".lfm-partial" / name).mkdir(parents=True)
    rmdir, calls = os.rmdir, []

    def interrupted(*arguments: object, **options: object) -> None:
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        rmdir(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "rmdir", interrupted)
    with pytest.raises(KeyboardInterrupt):
        destination.sweep(tmp_path)
    assert list(tmp_path.iterdir()) == []
