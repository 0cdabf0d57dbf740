"""The card of a repository: taken by the hub's own validation, the same each time, and never put over a user's."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.manifest import load_manifest
from lfm_convert.convert.publishing.card import CardSource, card_text
from lfm_convert.convert.publishing.ecosystems import ECOSYSTEMS
from lfm_convert.convert.publishing.names import CARD_FILE
from lfm_convert.targets.target import target_names
from support.published_folders import edit_manifest, note_verdicts

_LFM = {
    "license": "other",
    "license_name": "lfm1.0",
    "license_link": "LICENSE",
    "language": ["en", "no"],
    "tags": ["liquid", "edge"],
    "base_model": "Acme/Older",
}


def card(folder: Path, *options: str) -> int:
    return main(["card", str(folder), "--to", "Acme/{model}-{TARGET}", *options])


def text_of(folder: Path, **changes: object) -> str:
    manifest = load_manifest(folder)
    assert manifest is not None
    facts = {"repo": "Acme/Tiny-GGUF", "target": "gguf", "manifest": manifest, "base_model": None, "license_file": None}
    return card_text(CardSource(**{**facts, **changes}))


def test_every_target_has_an_ecosystem() -> None:
    assert set(ECOSYSTEMS) == set(target_names())


def test_the_front_matter_of_a_model_under_its_own_licence(gguf: Path) -> None:
    edit_manifest(
        gguf, lambda manifest: manifest["source"].update(card=_LFM, repository="Acme/Tiny", revision="0a" * 20)
    )
    (gguf / "LICENSE").write_text("LFM Open License v1.0")
    assert card(gguf) == 0
    text = (gguf / CARD_FILE).read_text()
    found = ModelCard(text).data.to_dict()
    assert found == {
        "base_model": "Acme/Tiny",
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "license": "other",
        "license_name": "lfm1.0",
        "license_link": "LICENSE",
        "language": ["en", "no"],
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "llama.cpp", "liquid", "edge"],
        "quantized_by": "lfm-convert",
    }
    assert f"Checkpoint: Acme/Tiny at {'0a' * 20}, 7 files" in text
    assert "Licence: lfm1.0, in `LICENSE`" in text


def test_what_is_not_known_is_not_claimed(gguf: Path) -> None:
    edit_manifest(gguf, lambda manifest: manifest["source"].pop("card"))
    found = ModelCard(text_of(gguf)).data.to_dict()
    assert not {"base_model", "base_model_relation", "license", "language"} & set(found)


def test_numbers_are_those_of_the_verdict(gguf: Path) -> None:
    note_verdicts(gguf, "F16", metrics={"kld_mean": None, "same_top1": 1.0}, run_bytes=None)
    rows = [line for line in text_of(gguf).splitlines() if line.startswith("| LFM2-Tiny")]
    assert rows == [
        "| LFM2-Tiny-3.4M-F16.gguf | F16 | 6.87 MB | – | 100.00 % | – | – | a runtime 1.0 CPU, 2 threads |",
        "| LFM2-Tiny-3.4M-Q8\\_0.gguf | Q8\\_0 | 3.67 MB | 0.00065 ± 0.0001 | 98.35 % | 1.0006 | 7.35 MB "
        "| a runtime 1.0 CPU, 2 threads |",
    ]  # fmt: skip


def test_names_from_outside_are_text(gguf: Path) -> None:
    def rename(manifest: dict) -> None:
        manifest["source"]["name"] = "x](javascript:1) <script>|\n# title"
        manifest["artifacts"][0]["validation"]["backend"] = "a | b\n```"

    edit_manifest(gguf, rename)
    text = text_of(gguf)
    assert "<script>" not in text.replace("\\<script\\>", "") and "\n# title" not in text
    assert text.count("```") % 2 == 0 and "a \\| b \\`\\`\\`" in text


def test_the_same_folder_gives_the_same_card(gguf: Path) -> None:
    assert card(gguf) == 0
    before = (gguf / CARD_FILE).read_bytes(), (gguf / "lfm-convert.json").read_bytes()
    assert card(gguf) == 0
    assert before == ((gguf / CARD_FILE).read_bytes(), (gguf / "lfm-convert.json").read_bytes())
    assert main(["verify", str(gguf)]) == 0


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_users_card_is_not_replaced(is_listed: bool, gguf: Path, capsys: pytest.CaptureFixture[str]) -> None:
    if is_listed:
        assert card(gguf) == 0
    mine = "---\nlicense: mit\n---\n# mine\n"
    (gguf / CARD_FILE).write_text(mine)
    assert card(gguf) == 2
    assert "README.md: is there, not as lfm-convert wrote it" in capsys.readouterr().err
    assert (gguf / CARD_FILE).read_text() == mine
    assert card(gguf, "--overwrite") == 0
    assert "# LFM2-Tiny-GGUF" in (gguf / CARD_FILE).read_text()


def test_no_card_of_what_may_not_be_published(gguf: Path) -> None:
    note_verdicts(gguf, "F16", verdict="fail")
    assert card(gguf) == 3
    assert not (gguf / CARD_FILE).exists()
    assert card(gguf, "--only", "Q8_0") == 0


def test_a_conversion_keeps_the_card(gguf: Path) -> None:
    assert card(gguf) == 0
    convert = ["bundled:dense", "--target", "gguf", "--quant", "Q4_0", "--no-validate", "--out", str(gguf)]
    assert main(convert) == 0
    listed = {file["path"] for file in json.loads((gguf / "lfm-convert.json").read_text())["shared"]}
    assert CARD_FILE in listed and (gguf / CARD_FILE).exists()


def test_shards_are_fetched_together(gguf_folder: Path, tmp_path: Path, copied: Callable[[Path], Path]) -> None:
    folder = tmp_path / "shards"
    convert = ["bundled:dense", "--target", "gguf", "--quant", "F16", "--no-validate", "--split-max-size", "3MB"]
    assert main([*convert, "--out", str(folder)]) == 0
    note_verdicts(folder)
    text = text_of(folder)
    assert 'allow_patterns="LFM2-Tiny-3.4M-F16-*.gguf"' in text
    assert '"LFM2-Tiny-3.4M-F16-00001-of-0000' in text
