"""Adapters that do not fit, are damaged, or are of another kind: all faults in one sentence, exit code 5, nothing written."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lfm_convert.convert.cli.main import main
from lfm_convert.convert.manifest import load_manifest
from support.made_adapters import PREFIX, W1, Q, write_adapter
from support.safetensors_files import Tensor, edit_tensors, float32

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
A, B = f"{PREFIX}{W1}.lora_A.weight", f"{PREFIX}{W1}.lora_B.weight"

Tensors = dict[str, Tensor]
Refusal = Callable[..., str]


@pytest.fixture
def refusal(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Refusal:
    """What a conversion with adapters ends with."""

    def convert(*folders: Path, code: int = 5) -> str:
        before = sorted(tmp_path.rglob("*"))
        named = [word for folder in folders for word in ("--adapter", str(folder))]
        arguments = [str(tiny_dense), "-t", "gguf", "-q", "Q8_0", "--out", str(tmp_path / "out"), "--no-validate"]
        assert main([*arguments, *named]) == code
        assert sorted(tmp_path.rglob("*")) == before
        return capsys.readouterr().err.splitlines()[-1]

    return convert


def edit(folder: Path, change: Callable[[Tensors], object]) -> Path:
    edit_tensors(folder / WEIGHTS, change)
    return folder


@pytest.mark.parametrize("kind", ["IA3", "LOHA", "BOFT", "PREFIX_TUNING", None])
def test_another_kind_is_named(kind: str | None, refusal: Refusal, tmp_path: Path) -> None:
    said = refusal(write_adapter(tmp_path / "a", peft_type=kind))
    assert f"is a PEFT adapter of type {kind}: expected peft_type LORA" in said


def test_an_adapter_of_mlx_is_named(refusal: Refusal, tmp_path: Path) -> None:
    said = refusal(write_adapter(tmp_path / "a", peft_type=None, fine_tune_type="lora"))
    assert "is an adapter of mlx-lm (lora): expected peft_type LORA" in said


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_qalora": True}, "use_qalora asks for QA-LoRA"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"layer_replication": [[0, 2]]}, "layers that are used twice"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4', which changes the base's own"),
        ({"use_new_thing": {"gain": 2}}, "has 'use_new_thing', which is not known here"),
        ({"r": 0}, "r is 0"),
        ({"lora_alpha": "many"}, "lora_alpha is 'many'"),
        ({"rank_pattern": {"(a+)+": 4}}, "rank_pattern has the pattern '(a+)+'"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern gives 'q_proj' 'x'"),
        ({"trainable_token_indices": [1, 1]}, "expected ids of tokens, each of them once"),
        ({"modules_to_save": ["lm_head"]}, "the tensors of 'lm_head' are missing: modules_to_save names it"),
        ({"target_modules": "all-linear"}, "tensors are missing, such as: tensor 'model.layers."),
        ({"use_dora": True}, "has no magnitudes, and use_dora is true"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_cannot_be_followed(
    settings: dict[str, object], said: str, refusal: Refusal, tmp_path: Path
) -> None:
    assert said in refusal(write_adapter(tmp_path / "a", **settings))


def test_all_faults_of_all_adapters_together(refusal: Refusal, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first", rank=3)  # 4 is declared

    def spoil(tensors: Tensors) -> None:
        del tensors[B]
        tensors[f"{PREFIX}model.layers.9.self_attn.q_proj.lora_A.weight"] = float32(np.ones((4, 128)))
        tensors[f"{PREFIX}model.layers.0.extra.weight"] = float32(np.ones(3))
        values = np.ones((4, 128))
        values[2, 5] = np.nan
        tensors[f"{PREFIX}{Q}.lora_A.weight"] = float32(values)

    said = refusal(first, edit(write_adapter(tmp_path / "second"), spoil))
    assert f"{tmp_path / 'first'}: tensor '{W1}.lora_A.weight' has rank 3: {CONFIG} declares 4" in said
    assert f"tensor '{W1}.lora_B.weight' is missing beside the others of its module" in said
    assert "tensor 'model.layers.9.self_attn.q_proj.lora_B.weight' is missing" in said
    assert f"tensor '{PREFIX}model.layers.0.extra.weight' is not part of the model" in said
    assert "holds nan at [2, 5]: expected finite weights" in said


def test_another_shape(refusal: Refusal, tmp_path: Path) -> None:
    folder = edit(write_adapter(tmp_path / "a"), lambda t: t.update({B: float32(np.ones((7, 4)))}))
    assert f"tensor '{W1}.lora_B.weight' has shape [7, 4]: the model expects [256, 4]" in refusal(folder)


def test_files_that_are_missing_or_pickled(refusal: Refusal, tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / WEIGHTS).rename(folder / "adapter_model.bin")
    assert f"{folder}: missing {WEIGHTS} (found a pickle" in refusal(folder)
    (folder / CONFIG).unlink()
    assert f"{folder}: is no adapter: it has no {CONFIG}" in refusal(folder)
    assert "no such folder" in refusal(tmp_path / "nowhere")


def test_a_weight_of_what_replaces(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    norm = "model.layers.1.self_attn.q_layernorm.weight"
    folder = edit(write_adapter(tmp_path / "a"), lambda t: t.update({PREFIX + norm: float32(np.ones(32))}))
    arguments = ["plan", str(tiny_dense), "-t", "gguf", "--adapter", str(folder)]
    assert main(arguments) == 0
    assert main([*arguments, "--adapter-weight", "0.5"]) == 5
    assert "replaces a tensor, which a weight cannot multiply" in capsys.readouterr().err


# --- whose artifacts they are


def test_artifacts_know_their_adapters(tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, out = write_adapter(tmp_path / "tuned"), tmp_path / "out"
    arguments = [str(tiny_dense), "-t", "gguf", "-q", "F16", "--out", str(out), "--no-validate"]
    tuned = [*arguments, "--adapter", str(folder), "--adapter-weight", "0.5"]
    assert main(tuned) == 0
    manifest = load_manifest(out)
    assert manifest is not None
    (listed,) = manifest.source["adapters"]
    assert (listed["name"], manifest.source["merging"]) == ("tuned", {"weights": [0.5], "dtype": None})
    assert [file["path"] for file in listed["files"]] == [CONFIG, WEIGHTS]
    assert main([*tuned, "--skip-existing"]) == 0
    assert main([*tuned[:-1], "0.25", "--skip-existing"]) == 2
    assert "it was made from another checkpoint" in capsys.readouterr().err
    assert main([*arguments[:3], "-q", "F32", *arguments[5:]]) == 2  # the base's artifacts beside them
    assert "holds artifacts of another checkpoint" in capsys.readouterr().err
    assert main(["validate", str(out), "--reference", str(tiny_dense), "--suite", "smoke"]) == 3
    assert "it was made with the adapters tuned × 0.5, and tiny-dense is without" in capsys.readouterr().out
    bad = tmp_path / "report.json"
    assert main(["validate", str(out), "--suite", "smoke", "--json", str(bad)]) == 2


def test_an_adapter_that_changes_meanwhile(
    tiny_dense: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lfm_convert.targets.gguf.target import GgufTarget

    folder, out, write = write_adapter(tmp_path / "tuned"), tmp_path / "out", GgufTarget.write

    def written(self: GgufTarget, *arguments: object) -> None:
        write(self, *arguments)  # type: ignore[arg-type]
        os.utime(folder / WEIGHTS, ns=(1, 1))

    monkeypatch.setattr(GgufTarget, "write", written)
    arguments = [str(tiny_dense), "-t", "gguf", "--out", str(out), "--no-validate", "--adapter", str(folder)]
    assert main(arguments) == 5
    assert f"{folder / WEIGHTS}: changed while it was being converted" in capsys.readouterr().err
    assert not out.exists()


def test_nothing_is_written_into_an_adapter(
    tiny_dense: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write_adapter(tmp_path / "tuned")
    (folder / "tiny.gguf").write_bytes(b"somebody's")
    arguments = [str(tiny_dense), "-t", "gguf", "--adapter", str(folder), "--no-validate", "--overwrite"]
    assert main([*arguments, "--outfile", str(folder / "tiny.gguf")]) == 2
    assert "is the checkpoint's own and would be replaced" in capsys.readouterr().err
    assert (folder / "tiny.gguf").read_bytes() == b"somebody's"
    assert json.loads((folder / CONFIG).read_text())["r"] == 4
