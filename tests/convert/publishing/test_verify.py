"""Each way to tamper with a release is named; a sound one is not."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from lfm_convert.convert.cli.main import main
from support.published_folders import edit_manifest
from support.publishing_hub import Hub

pytest.importorskip("model_signing", reason="the extra `release` is not installed")

from support.signing_keys import make_key

Tamper = Callable[[Path], object]


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "other"):
        make_key(folder / name)
    make_key(folder / "locked", password="a secret")
    return folder


@pytest.fixture(scope="module")
def signed_once(gguf_folder: Path, keys: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = Path(shutil.copytree(gguf_folder, tmp_path_factory.mktemp("signed") / "release"))
    (folder / "private notes.txt").write_text("not part of it")
    assert main(["card", str(folder), "--to", "Acme/Tiny-GGUF"]) == 0
    assert main(["sign", str(folder), "--key", str(keys / "ours.pem")]) == 0
    return folder


@pytest.fixture
def signed(signed_once: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(signed_once, tmp_path / "release"))


def verify(folder: Path, *options: object) -> int:
    return main(["verify", str(folder), *map(str, options)])


def test_a_sound_release(signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(signed, "--key", keys / "ours.pub") == 0
    said = capsys.readouterr()
    assert "7 files are those of its manifest and its provenance, signed with the key of" in said.out
    assert "not part of the release: private notes.txt" in said.err
    assert verify(signed) == 0
    assert "that it is valid, and whose, only --key can tell" in capsys.readouterr().err


def test_a_snapshot_in_the_cache_of_a_hub(signed: Path, keys: Path, tmp_path: Path) -> None:
    """Its files are links to the store of the cache."""
    cache = tmp_path / "models--Acme--Tiny-GGUF"
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "blobs").mkdir()
    for path in signed.iterdir():
        if path.suffix != ".txt" and path.is_file():
            shutil.copy(path, cache / "blobs" / path.name)
            (cache / "snapshots" / "abc" / path.name).symlink_to(f"../../blobs/{path.name}")
    assert verify(cache / "snapshots" / "abc", "--key", keys / "ours.pub") == 0


def test_no_name_of_another_file_is_in_the_proofs(signed: Path) -> None:
    import base64

    bundle = json.loads((signed / "model.sig").read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).decode()
    for text in (payload, (signed / "provenance.intoto.json").read_text()):
        assert "private notes" not in text and str(signed.parent) not in text
    assert {each["name"] for each in json.loads(payload)["predicate"]["resources"]} == {
        "LFM2-Tiny-3.4M-F16.gguf",
        "LFM2-Tiny-3.4M-Q8_0.gguf",
        "README.md",
        "lfm-convert.json",
        "provenance.intoto.json",
        "sbom.cdx.json",
    }


def _flip(name: str) -> Tamper:
    def flip(folder: Path) -> None:
        (path,) = folder.glob(name)
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)

    return flip


def _remove(name: str) -> Tamper:
    return lambda folder: next(folder.glob(name)).unlink()


def _claim_other_source(manifest: dict) -> None:
    manifest["source"]["files"][0]["sha256"] = "0" * 64


def _list_nothing(manifest: dict) -> None:
    manifest["artifacts"] = manifest["artifacts"][:1]


def _sign_with_a_stranger(folder: Path) -> None:
    from lfm_convert.convert.publishing.signature import sign_files

    (folder / "evil.py").write_text("print('mine')")
    names = ("evil.py", *(path.name for path in folder.iterdir() if path.suffix != ".txt" and path.name != "model.sig"))
    signature = sign_files({name: folder / name for name in names}, "release", folder.parent / "ours.pem")
    (folder / "model.sig").write_bytes(signature)


def _edit_signature(folder: Path) -> None:
    import base64

    path = folder / "model.sig"
    bundle = json.loads(path.read_text())
    payload = base64.b64decode(bundle["dsseEnvelope"]["payload"]).replace(
        b'"hash_type": "sha256"', b'"hash_type":  "sha256"'
    )
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(payload).decode()
    path.write_text(json.dumps(bundle))


@pytest.mark.parametrize(
    ("tamper", "sentences"),
    [
        (_flip("*Q8_0.gguf"), ["'LFM2-Tiny-3.4M-Q8_0.gguf' has sha256", "expected", "'model.sig' says"]),
        (_flip("README.md"), ["'README.md' has sha256"]),
        (_flip("sbom.cdx.json"), ["'sbom.cdx.json' has sha256", "'provenance.intoto.json' says"]),
        (_remove("*F16.gguf"), ["'LFM2-Tiny-3.4M-F16.gguf' is missing"]),
        (_remove("sbom.cdx.json"), ["'sbom.cdx.json' is missing, which 'model.sig' lists"]),
        (_remove("provenance.intoto.json"), ["'provenance.intoto.json' is missing, which 'model.sig' lists"]),
        (_remove("model.sig"), ["'model.sig' is missing, and --key asks for a signature"]),
        (lambda folder: edit_manifest(folder, _claim_other_source), ["'lfm-convert.json' has sha256", "other files of the checkpoint"]),
        (lambda folder: edit_manifest(folder, _list_nothing), ["'lfm-convert.json' has sha256", "does not know it"]),
        (_sign_with_a_stranger, ["'evil.py' is signed, and 'lfm-convert.json' does not know it"]),
        (_edit_signature, ["model.sig: was changed after it was made"]),
        (lambda folder: (folder / "model.sig").write_text("{}"), ["model.sig: is no signature of a model"]),
        (lambda folder: (folder / "provenance.intoto.json").write_text("[]"), ["expected a JSON object, found list"]),
        (lambda folder: (folder / "provenance.intoto.json").write_text("{}"), ["is no in-toto statement"]),
    ],
)  # fmt: skip
def test_tampering_is_named(
    tamper: Tamper, sentences: list[str], signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(keys / "ours.pem", signed.parent / "ours.pem")
    tamper(signed)
    assert verify(signed, "--key", keys / "ours.pub") == 5
    said = capsys.readouterr().err
    assert said.count("\n") <= 2 and all(sentence in said for sentence in sentences), said


def test_another_key(signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(signed, "--key", keys / "other.pub", "--json") == 5
    found = json.loads(capsys.readouterr().out)
    (fault,) = found["faults"]
    assert "model.sig: was made with another key than" in fault
    assert (found["ok"], found["signature"]) == (False, "invalid")


@pytest.mark.parametrize("name", ["ours.pem", "none.pub", "notes.pub"])
def test_no_key(name: str, signed: Path, keys: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.pub").write_text("hello")
    path = next((path for path in (keys / name, tmp_path / name) if path.exists()), tmp_path / name)
    assert verify(signed, "--key", path) == 5
    assert f"{path}: is no elliptic public key in PEM" in capsys.readouterr().err


def test_without_proofs_the_manifest_alone_is_held_to(gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert verify(gguf) == 0
    assert "neither signed nor stated" in capsys.readouterr().err
    _flip("*F16.gguf")(gguf)
    assert verify(gguf) == 5
    assert "'LFM2-Tiny-3.4M-F16.gguf' has sha256" in capsys.readouterr().err
    assert verify(gguf / "nothing") == 5


def test_signing_replaces_nothing_unasked(signed: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (signed / "model.sig").read_bytes()
    assert main(["sign", str(signed), "--key", str(keys / "ours.pem")]) == 2
    assert "--overwrite replaces" in capsys.readouterr().err
    assert (signed / "model.sig").read_bytes() == before
    assert main(["sign", str(signed), "--overwrite"]) == 0
    assert not (signed / "model.sig").exists(), "one of before would be of other files"


def test_what_is_changed_is_not_signed(gguf: Path, keys: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _flip("*F16.gguf")(gguf)
    assert main(["sign", str(gguf), "--key", str(keys / "ours.pem")]) == 5
    assert not (gguf / "provenance.intoto.json").exists()


def test_a_key_with_a_password(
    gguf: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["sign", str(gguf), "--key", str(keys / "locked.pem")]) == 5
    assert "is no elliptic private key in PEM that opens here" in capsys.readouterr().err
    monkeypatch.setenv("LFM_CONVERT_KEY_PASSWORD", "a secret")
    assert main(["sign", str(gguf), "--key", str(keys / "locked.pem")]) == 0
    assert verify(gguf, "--key", keys / "locked.pub") == 0


def test_the_same_folder_gives_the_same_statement_and_bill(signed: Path, keys: Path) -> None:
    names = ("provenance.intoto.json", "sbom.cdx.json")
    before = [(signed / name).read_bytes() for name in names]
    assert main(["sign", str(signed), "--overwrite", "--key", str(keys / "ours.pem")]) == 0
    assert [(signed / name).read_bytes() for name in names] == before


def test_the_statement_leads_from_the_checkpoint_to_the_files(signed: Path) -> None:
    statement = json.loads((signed / "provenance.intoto.json").read_text())
    manifest = json.loads((signed / "lfm-convert.json").read_text())
    assert (statement["_type"], statement["predicateType"]) == (
        "https://in-toto.io/Statement/v1",
        "https://slsa.dev/provenance/v1",
    )
    built = statement["predicate"]["buildDefinition"]
    assert {each["name"]: each["digest"]["sha256"] for each in built["resolvedDependencies"]} == {
        file["path"]: file["sha256"] for file in manifest["source"]["files"]
    }
    assert [each["quant"] for each in built["externalParameters"]["artifacts"]] == ["F16", "Q8_0"]


def test_the_bill_of_materials_is_of_this_environment(signed: Path) -> None:
    from importlib.metadata import version

    bill = json.loads((signed / "sbom.cdx.json").read_text())
    assert (bill["bomFormat"], "timestamp" in bill["metadata"]) == ("CycloneDX", False)
    listed = {each["name"]: each["version"] for each in bill["components"]}
    assert listed["numpy"] == version("numpy")
    needs = {each["ref"]: each.get("dependsOn", []) for each in bill["dependencies"]}
    assert any(ref.startswith("pkg:pypi/numpy@") for ref in needs[bill["metadata"]["component"]["bom-ref"]])


def test_model_signings_own_command_agrees(signed: Path, keys: Path) -> None:
    from model_signing import verifying

    verifier = verifying.Config().use_elliptic_key_verifier(public_key=keys / "ours.pub")
    with pytest.raises(ValueError, match="private notes"):
        verifier.verify(signed, signed / "model.sig")
    (signed / "private notes.txt").unlink()
    verifying.Config().use_elliptic_key_verifier(public_key=keys / "ours.pub").verify(signed, signed / "model.sig")


def test_a_signed_folder_is_published_as_it_lies(hub: Hub, signed: Path, keys: Path, tmp_path: Path) -> None:
    assert main(["publish", str(signed), "--to", "Acme/Tiny-GGUF"]) == 0
    found = hub.repositories["Acme/Tiny-GGUF"].files()
    found.pop(".gitattributes")
    assert found == {name: (signed / name).read_bytes() for name in found}
    assert {"model.sig", "provenance.intoto.json", "sbom.cdx.json", "README.md"} < set(found)
    assert _download(found, tmp_path / "copy", keys) == 0


def test_signed_while_it_is_published(hub: Hub, gguf: Path, keys: Path, tmp_path: Path) -> None:
    options = ["--to", "Acme/Tiny-GGUF", "--only", "F16", "--sign-key", str(keys / "ours.pem")]
    assert main(["publish", str(gguf), *options]) == 0
    assert not (gguf / "model.sig").exists()
    assert _download(hub.repositories["Acme/Tiny-GGUF"].files(), tmp_path / "copy", keys) == 0


def _download(files: dict[str, bytes], folder: Path, keys: Path) -> int:
    for name, data in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
    return verify(folder, "--key", keys / "ours.pub")


@pytest.mark.parametrize(
    ("change", "options", "code", "sentence"),
    [
        (lambda folder: None, ["--only", "F16"], 2, "are of the whole folder"),
        (_flip("README.md"), [], 5, "README.md"),
        (_flip("sbom.cdx.json"), [], 5, "'sbom.cdx.json' has sha256"),
        (lambda folder: None, ["--sign-key", "KEY"], 2, "has proofs of its own already"),
    ],
)
def test_a_signed_folder_is_published_whole_or_not(
    change: Tamper,
    options: list[str],
    code: int,
    sentence: str,
    hub: Hub,
    signed: Path,
    keys: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    change(signed)
    given = [str(keys / "ours.pem") if option == "KEY" else option for option in options]
    assert main(["publish", str(signed), "--to", "Acme/Tiny-GGUF", *given]) == code
    assert sentence in capsys.readouterr().err
    assert hub.asked == []
