"""Every input that was once a finding, and some hundred mutations of each reader. `make fuzz` tries more."""

from __future__ import annotations

from pathlib import Path

import pytest
from fuzz import run
from fuzz.readers import READERS
from fuzz.run import _NAMES, Session, fuzz_blindly, kept

# A chat template is read by a process of its own each time.
_EXECUTIONS = dict.fromkeys(READERS, 200) | {"template": 25}


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_are_read_or_refused(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "MAX_SECONDS", 60.0)  # a busy machine is no finding
    session = Session(READERS[name], tmp_path)
    seeds = len(session.seeds)
    fuzz_blindly(session, executions=seeds + _EXECUTIONS[name], seed=14)
    assert not session.findings
    assert seeds >= len(kept(name))


def test_the_list_of_readers_is_whole() -> None:
    assert set(_NAMES) == set(READERS)


def test_a_finding_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An exception of the wrong kind, and a loop."""
    from fuzz import run

    monkeypatch.setattr(run, "CORPUS", tmp_path / "corpus")
    monkeypatch.setattr(run, "MAX_SECONDS", 0.1)

    def bad(data: bytes, folder: Path) -> None:
        while data == b"loop":
            pass
        raise KeyError("x")

    session = Session(run_reader(bad), tmp_path)
    assert session.execute(b"loop") == "Hang at ?: more than 0.1 seconds"
    assert session.execute(b"x") == "KeyError at ?: 'x'"
    assert sorted(kept("bad")) == [b"loop", b"x"]


def run_reader(read):
    from fuzz.readers import Reader

    return Reader("bad", lambda folder: iter(()), read)
