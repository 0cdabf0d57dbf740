"""What reaches a hub is what was validated, whole, or nothing: against a local server that speaks the hub's API."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.publishing.hub import TRIES
from support.published_folders import edit_manifest, note_verdicts, over_budget
from support.publishing_hub import TOKEN, Fault, File, Hub

REPO = "Acme/LFM2-Tiny-GGUF"


def publish(folder: Path, *options: object, to: str = "Acme/{model}-{TARGET}") -> int:
    return main(["publish", str(folder), "--to", to, "--base-model", "Acme/LFM2-Tiny", *map(str, options)])


def test_the_repository_is_the_folder_to_the_byte(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (gguf / "notes.txt").write_text("mine")
    assert publish(gguf, "--json") == 0
    (told,) = json.loads(capsys.readouterr().out)["repositories"]
    found = hub.repositories[REPO].files()
    artifacts = {path.name: path.read_bytes() for path in gguf.glob("*.gguf")}
    assert len(artifacts) == 2 and artifacts.items() <= found.items()
    assert set(found) == {*artifacts, ".gitattributes", "README.md", "lfm-convert.json"}
    assert told["commit"] == hub.repositories[REPO].refs["main"] and set(told["files"]) == set(found) - {
        ".gitattributes"
    }
    manifest = json.loads(found["lfm-convert.json"])
    assert [entry["quant"] for entry in manifest["artifacts"]] == ["F16", "Q8_0"]
    assert not (gguf / "README.md").exists(), "publishing changes nothing here"


def test_a_second_run_sends_nothing(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(gguf) == 0
    commits = dict(hub.repositories[REPO].commits)
    hub.received.clear()
    assert publish(gguf) == 0
    assert "0 of 4 files sent" in capsys.readouterr().out
    assert (hub.received, hub.repositories[REPO].commits) == ([], commits)


def test_what_has_arrived_is_not_sent_again(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The connection breaks at the commit, for good; the next run has only that left to do."""
    hub.faults = [Fault("POST", "/commit/", cut="before", times=100)]
    assert publish(gguf) == 8
    said = capsys.readouterr().err
    assert "the hub cannot be reached" in said and "not sent again by the next run" in said
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    assert len(hub.received) == 2
    hub.faults = []
    assert publish(gguf) == 0
    assert len(hub.received) == 2, "both large files were there already"


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT", "/store/", cut="before", times=2),
        Fault("PUT", "/store/", cut="after", times=2),
        Fault("PUT", "/store/", status=503),
        Fault("POST", "/objects/batch", status=500),
        Fault("POST", "/preupload/", status=429, headers={"Retry-After": "3"}),
        Fault("POST", "/repos/create", cut="after"),
        Fault("POST", "/repos/create", status=429, headers={"Retry-After": "7"}),
        Fault("POST", "/commit/", status=502, times=2),
        Fault("POST", "/commit/", cut="before"),
        Fault("POST", "/commit/", cut="after"),
        Fault("GET", "/tree/", status=504, times=3),
        Fault("POST", "/validate-yaml", cut="before"),
    ],
    ids=lambda fault: f"{fault.path}-{fault.cut or fault.status}",
)
def test_what_fails_for_a_while_is_tried_again(fault: Fault, hub: Hub, gguf: Path) -> None:
    hub.faults = [Fault(**vars(fault))]
    assert publish(gguf) == 0
    assert hub.faults[0].times == 0
    found = hub.repositories[REPO]
    assert len(found.commits) == 2, "one commit, though its answer may have been lost"
    assert {path.name: path.read_bytes() for path in gguf.glob("*.gguf")}.items() <= found.files().items()


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        (Fault("POST", "/repos/create", status=500, times=99), f"the hub answers 500 to each of {TRIES} tries"),
        (Fault("PUT", "/store/", status=503, times=999), f"the hub answers 503 to each of {TRIES} tries"),
        (Fault("PUT", "/store/", cut="before", times=999), "the hub cannot be reached"),
        (
            Fault("POST", "/preupload/", status=429, times=9, headers={"Retry-After": "3600"}),
            "asks to come back in 3600 s",
        ),
        (Fault("POST", "/repos/create", status=401), "the hub does not accept the token (401)"),
        (Fault("POST", "/repos/create", status=403), "the token may not write to Acme/LFM2-Tiny-GGUF (403)"),
        (Fault("POST", "/commit/", status=412), "somebody else has committed to Acme/LFM2-Tiny-GGUF meanwhile"),
    ],
    ids=lambda value: f"{value.path}-{value.cut or value.status}" if isinstance(value, Fault) else "",
)
def test_what_stays_is_one_sentence(
    fault: Fault, sentence: str, hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.faults = [Fault(**vars(fault))]
    assert publish(gguf) == 8
    lines = capsys.readouterr().err.splitlines()
    assert sentence in lines[-1] and "secret" not in "".join(lines)
    assert all(line.startswith("lfm-convert:") or "tried again in" in line for line in lines), lines
    assert not hub.repositories or set(hub.repositories[REPO].files()) == {".gitattributes"}


def test_without_a_token(
    hub: Hub, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert publish(gguf) == 2
    assert "no token for the hub: set HF_TOKEN" in capsys.readouterr().err
    assert hub.asked == []


def test_a_gated_repository(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hub.create(REPO)
    hub.gated.add(REPO)
    assert publish(gguf) == 8
    assert f"{REPO} is gated and the token's owner is not let in" in capsys.readouterr().err


def test_private_is_not_published_in_the_open(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert publish(gguf, "--private", to="Acme/Hidden") == 0
    assert hub.repositories["Acme/Hidden"].private
    hub.create(REPO)
    assert publish(gguf, "--private", to=REPO) == 2
    assert "is there already and public" in capsys.readouterr().err
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}


def _tamper(folder: Path) -> None:
    path = next(folder.glob("*Q8_0.gguf"))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("spoil", "code", "sentence"),
    [
        (_tamper, 5, "Q8_0.gguf' has sha256"),
        (lambda folder: next(folder.glob("*F16.gguf")).unlink(), 5, "F16.gguf' is missing"),
        (lambda folder: note_verdicts(folder, "Q8_0", verdict="fail", message="KLD 0.4"), 3, "failed its validation (KLD 0.4)"),
        (lambda folder: note_verdicts(folder, "Q8_0", verdict="skipped", message="no runtime"), 3, "was not run (no runtime)"),
        (lambda folder: edit_manifest(folder, lambda m: m["artifacts"][0].update(validation=None)), 3, "has not been validated"),
        (lambda folder: over_budget(folder, "F16"), 4, "is over its budget"),
        (lambda folder: (folder / "lfm-convert.json").unlink(), 5, "holds no lfm-convert.json"),
        (lambda folder: edit_manifest(folder, lambda m: m.update(artifacts=[])), 5, "lists no artifact"),
        (lambda folder: edit_manifest(folder, lambda m: m.pop("shared")), 5, "is of before shared files were noted"),
        (lambda folder: (folder / "README.md").write_text("# no front matter"), 5, "has no front matter"),
        (lambda folder: (folder / "README.md").write_text("---\na: [\n---\n"), 5, "front matter is not YAML"),
        (lambda folder: (folder / "README.md").symlink_to("/etc/hostname"), 5, "outside the folder"),
        (lambda folder: edit_manifest(folder, lambda m: m["source"].update(card={"license": "other"})), 2, "must go along"),
    ],
)  # fmt: skip
def test_what_must_not_be_published_is_refused_before_anything_is_sent(
    spoil, code: int, sentence: str, hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(gguf)
    assert publish(gguf) == code
    assert sentence in capsys.readouterr().err
    assert hub.asked == []


def test_the_others_are_published_without_the_one_that_failed(hub: Hub, gguf: Path) -> None:
    note_verdicts(gguf, "Q8_0", verdict="fail")
    assert publish(gguf, "--only", "F16") == 0
    found = hub.repositories[REPO].files()
    assert [path for path in found if path.endswith(".gguf")] == ["LFM2-Tiny-3.4M-F16.gguf"]
    assert [entry["quant"] for entry in json.loads(found["lfm-convert.json"])["artifacts"]] == ["F16"]
    assert "Q8_0" not in found["README.md"].decode()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--to", "nameless"], "--to nameless: is no repository of a hub: expected ORG/NAME"),
        (["--to", "Acme/x--y"], "is no repository of a hub"),
        (["--to", "Acme/{size}"], "there is no {size}: expected {model}, {TARGET}, {target}, {quant}"),
        (["--to", "Acme/x", "--only", "Q2_K"], "--only Q2_K: "),
        (["--to", "Acme/x", "--base-model", "tiny"], "--base-model tiny: is no repository of a hub"),
        (["--to", "Acme/x", "--revision", "next", "--pull-request"], "leave --revision out"),
    ],
)
def test_requests_that_cannot_be_carried_out(
    options: list[str], sentence: str, hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["publish", str(gguf), *options]) == 2
    assert sentence in capsys.readouterr().err
    assert hub.asked == []


def test_a_branch(hub: Hub, gguf: Path) -> None:
    assert publish(gguf, "--revision", "v1/next") == 0
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}
    assert len(hub.repositories[REPO].files("v1/next")) == 5
    assert publish(gguf, "--revision", "v1/next") == 0


@pytest.mark.parametrize("cut", ["", "after"])
def test_a_pull_request_is_opened_once_the_bytes_are_there(cut: str, hub: Hub, gguf: Path) -> None:
    hub.faults = [Fault("POST", "/discussions$", cut=cut)] if cut else []
    assert publish(gguf, "--pull-request") == 0
    found = hub.repositories[REPO]
    (request,) = found.requests
    assert (request["status"], request["title"][:9]) == ("open", "Add LFM2-")
    assert len(found.files("refs/pr/1")) == 5 and set(found.files()) == {".gitattributes"}
    assert publish(gguf, "--pull-request") == 0
    assert len(found.requests) == 1


def test_an_interrupted_pull_request_stays_a_draft_and_is_gone_on_with(hub: Hub, gguf: Path) -> None:
    hub.faults = [Fault("POST", "/commit/", status=503, times=99)]
    assert publish(gguf, "--pull-request") == 8
    (request,) = hub.repositories[REPO].requests
    assert request["status"] == "draft"
    hub.faults = []
    assert publish(gguf, "--pull-request") == 0
    assert [each["status"] for each in hub.repositories[REPO].requests] == ["open"]


def test_other_bytes_on_the_hub_are_told(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(listed: dict) -> dict:
        return {**listed, "lfs": {**listed["lfs"], "oid": "0" * 64}} if listed["path"].endswith("F16.gguf") else listed

    hub.spoil = spoil
    assert publish(gguf, "--pull-request") == 8
    assert "does not hold what was sent: 'LFM2-Tiny-3.4M-F16.gguf'" in capsys.readouterr().err
    assert hub.repositories[REPO].requests[0]["status"] == "draft"


def test_files_of_others_on_the_hub_are_not_replaced(hub: Hub, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = hub.create(REPO)
    own = File(b"---\nlicense: mit\n---\n# by hand\n", is_lfs=False)
    found.commit("main", {"README.md": own, "old.bin": File(b"x", is_lfs=True)}, "by hand")
    assert publish(gguf) == 2
    assert "README.md is there, not as lfm-convert published it" in capsys.readouterr().err
    assert publish(gguf, "--pull-request") == 0
    assert publish(gguf, "--overwrite") == 0
    assert b"by hand" not in found.files()["README.md"]
    assert found.files()["old.bin"] == b"x"
    assert "old.bin is there as well" in capsys.readouterr().err


def test_what_we_published_before_is_replaced(hub: Hub, gguf: Path) -> None:
    assert publish(gguf) == 0
    note_verdicts(gguf, "Q8_0", message="another verdict", metrics={"kld_mean": 0.5})
    assert publish(gguf) == 0
    assert b"| 0.5 |" in hub.repositories[REPO].files()["README.md"]


def test_a_dry_run_asks_no_hub(
    hub: Hub, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("HF_TOKEN")
    assert publish(gguf, "--dry-run", "--json") == 0
    (found,) = json.loads(capsys.readouterr().out)["repositories"]
    assert found["repo"] == REPO
    assert {file["path"] for file in found["files"]} >= {"README.md", "lfm-convert.json", "LFM2-Tiny-3.4M-F16.gguf"}
    assert hub.asked == []


def test_the_users_own_card_goes_along_as_it_is(hub: Hub, gguf: Path) -> None:
    text = "---\nlicense: apache-2.0\n---\n\n# Mine, all mine\n"
    (gguf / "README.md").write_text(text)
    assert publish(gguf) == 0
    assert hub.repositories[REPO].files()["README.md"] == text.encode()


def test_reports_of_these_files_go_along(
    hub: Hub, gguf: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((gguf / "lfm-convert.json").read_text())
    hashes = [file["sha256"] for entry in manifest["artifacts"] for file in entry["files"]]
    report = tmp_path / "report.html"
    report.write_text(f"<p>{hashes[0]}</p>")
    assert publish(gguf, "--report", report) == 5
    assert "does not tell of LFM2-Tiny-3.4M-Q8_0.gguf as it is" in capsys.readouterr().err
    report.write_text("".join(hashes))
    assert publish(gguf, "--report", tmp_path / "none.json") == 5
    assert publish(gguf, "--report", report.rename(tmp_path / "README.md")) == 2
    assert "has a file README.md already" in capsys.readouterr().err and hub.asked == []
    assert publish(gguf, "--report", (tmp_path / "README.md").rename(report)) == 0
    found = hub.repositories[REPO].files()
    assert found["report.html"] == report.read_bytes()
    assert "report.html" in {file["path"] for file in json.loads(found["lfm-convert.json"])["shared"]}


def test_a_file_that_changes_while_it_is_sent_is_in_no_commit(
    hub: Hub, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lfm_convert.convert.publishing.hub import Hub as Client

    create = Client.create

    def tampering(self: Client, repo: str, *, private: bool) -> None:
        create(self, repo, private=private)
        _tamper(gguf)

    monkeypatch.setattr(Client, "create", tampering)
    assert publish(gguf) == 5
    assert "LFM2-Tiny-3.4M-Q8_0.gguf: was changed while it was sent" in capsys.readouterr().err
    assert set(hub.repositories[REPO].files()) == {".gitattributes"}


def test_a_hub_without_xet_gets_lfs_objects(
    hub: Hub, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    assert publish(gguf) == 0
    assert "the hub offers no Xet" in capsys.readouterr().err
    assert hub.count("GET", "/xet-write-token/") == 1 and len(hub.received) == 2
    assert not constants.HF_HUB_DISABLE_XET


def test_a_run_that_is_killed_is_gone_on_with(hub: Hub, gguf: Path, tmp_path: Path) -> None:
    """In a process of its own, which knows the hub by its environment alone; killed once the first file has arrived."""
    settings = {
        "HF_ENDPOINT": hub.endpoint,
        "HF_TOKEN": TOKEN,
        "HF_HOME": str(tmp_path / "hf"),
        "HF_HUB_DISABLE_XET": "1",
    }
    command = [sys.executable, "-m", "lfm_convert", "publish", str(gguf), "--to", REPO]
    hub.faults = [Fault("POST", "/commit/", cut="before", times=999)]
    process = subprocess.Popen(command, env={**os.environ, **settings}, stderr=subprocess.DEVNULL)
    while not hub.received and process.poll() is None:
        threading.Event().wait(0.01)
    process.kill()
    process.wait()
    hub.faults, before = [], list(hub.received)
    assert before and set(hub.repositories[REPO].files()) == {".gitattributes"}
    done = subprocess.run(command, env={**os.environ, **settings}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = hub.repositories[REPO].files()
    assert {path.name: path.read_bytes() for path in gguf.glob("*.gguf")}.items() <= found.items()
    assert len(hub.received) == len(set(hub.received)), "what had arrived was not sent again"


def test_offline(hub: Hub, gguf: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert publish(gguf) == 8
    assert "HF_HUB_OFFLINE says that no hub may be asked" in capsys.readouterr().err
