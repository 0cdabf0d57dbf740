"""Publishing: a destination is absent or whole, whatever happens on the way."""

from __future__ import annotations

import errno
import json
import os
import signal
import stat
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from lfm_convert.convert import files
from lfm_convert.convert.errors import DiskError


def _tree(folder: Path) -> dict[str, str]:
    return {p.relative_to(folder).as_posix(): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def _publish(destination: Path, content: dict[str, str], *, remove: tuple[str, ...] = ()) -> None:
    with files.staged(destination, need_bytes=10) as staging:
        for name, text in content.items():
            path = staging.folder / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(text)
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
    with pytest.raises(RuntimeError), files.staged(out, need_bytes=10) as staging:
        (staging.folder / "a").write_text("half")
        raise RuntimeError
    assert _tree(tmp_path) == {"out/a": "old"}


def test_failure_of_a_first_run_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), files.staged(tmp_path / "out", need_bytes=10):
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("n_moved", range(4))
def test_interrupted_renames_are_finished_by_the_next_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, n_moved: int
) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old", "b": "old", "c": "old"})
    moved: list[Path] = []
    real = Path.replace

    def replace(self: Path, target: Path) -> Path:
        if len(moved) == n_moved:
            os.kill(os.getpid(), signal.SIGKILL)
        moved.append(self)
        return real(self, target)

    child = os.fork()
    if child == 0:
        monkeypatch.setattr(Path, "replace", replace)
        _publish(out, {"a": "new", "b": "new", "c": "new"})
        os._exit(0)
    os.waitpid(child, 0)
    files.recover(out)
    assert _tree(tmp_path) == {f"out/{name}": "new" for name in "abc"}


def test_killed_before_the_record_is_swept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    child = os.fork()
    if child == 0:
        with files.staged(out, need_bytes=10) as staging:
            (staging.folder / "a").write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    _publish(out, {"b": "new"})
    assert _tree(tmp_path) == {"out/a": "old", "out/b": "new"}


def test_a_record_cut_short_moves_nothing(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    staging = tmp_path / ".out.lfm-partial"
    staging.mkdir()
    (staging / "a").write_text("new")
    (staging / "commit.json").write_text(json.dumps({"moves": ["a"], "remove": []})[:-3])
    files.recover(out)
    assert _tree(tmp_path) == {"out/a": "old"}


def test_two_runs_do_not_mix(tmp_path: Path) -> None:
    script = f"""
        from pathlib import Path
        from lfm_convert.convert.errors import DiskError
        from lfm_convert.convert.files import staged
        try:
            with staged(Path({str(tmp_path / "out")!r}), need_bytes=1):
                print("entered")
        except DiskError as error:
            print(error)
    """
    with files.staged(tmp_path / "out", need_bytes=1):
        found = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, check=True
        )
    assert "another run is writing there" in found.stdout


def test_too_little_room_is_said_first(tmp_path: Path) -> None:
    with (
        pytest.raises(DiskError, match=r"needs 1000000 GB, and .* is free"),
        files.staged(tmp_path / "out", need_bytes=10**15),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_disk_full_on_the_way(tmp_path: Path) -> None:
    out = tmp_path / "out"
    _publish(out, {"a": "old"})
    with pytest.raises(DiskError, match="no space left"), files.staged(out, need_bytes=1) as staging:
        (staging.folder / "a").write_text("half")
        raise OSError(errno.ENOSPC, "No space left on device")
    assert _tree(tmp_path) == {"out/a": "old"}


def test_a_file_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(DiskError, match="is a file"), files.staged(tmp_path / "out", need_bytes=1):
        pass
    assert (tmp_path / "out").read_text() == "mine"


def test_mode_honours_umask(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        _publish(tmp_path / "out", {"a": "1"})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "out" / "a").stat().st_mode) == 0o640
