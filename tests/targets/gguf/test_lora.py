"""A trained adapter in GGUF: merged, and as a file of its own beside its base, both say what PEFT's model says."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from lfm_convert.convert import bundled
from lfm_convert.convert.cli.main import main
from lfm_convert.quantize.gguf_file.reader import read_gguf
from support.llama_lora import logits_with
from support.peft_adapters import load_model, make_adapter
from support.train_lora import train

pytestmark = pytest.mark.peers

IDS = [1, 36, 283, 64, 500, 12, 77, 301, 9, 410, 55, 23]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("trained") / "harbour")


def peft_logits(base: Path, folder: Path) -> np.ndarray:
    """Of the model as it was trained, not merged, in float32."""
    from peft import PeftModel

    model = PeftModel.from_pretrained(load_model(base, dtype=torch.float32), folder).eval()
    with torch.no_grad():
        return model(torch.tensor([IDS])).logits[0].float().numpy()


def convert(model: str, folder: Path, *more: str) -> Path:
    arguments = [model, "--target", "gguf", "--quant", "F32", "--out", str(folder), "--no-validate", *more]
    assert main(arguments) == 0
    return next(folder.glob("*.gguf"))


def test_a_trained_adapter_merged(trained: Path, tmp_path: Path) -> None:
    wanted = peft_logits(bundled.path("dense"), trained)
    merged = convert("bundled:dense", tmp_path / "out", "--adapter", str(trained), "--merge-dtype", "float32")
    plain = convert("bundled:dense", tmp_path / "plain")
    assert np.abs(logits_with(merged, None, IDS) - wanted).max() < 1e-4
    assert np.abs(logits_with(plain, None, IDS) - wanted).max() > 1  # what was trained is seen


def test_a_trained_adapter_as_a_file_of_its_own(trained: Path, tmp_path: Path) -> None:
    plain, lora = convert("bundled:dense", tmp_path / "plain"), tmp_path / "lora.gguf"
    arguments = ["lora", "bundled:dense", "--adapter", str(trained), "--out", str(lora)]
    assert main([*arguments, "--quant", "F32"]) == 0
    wanted = peft_logits(bundled.path("dense"), trained)
    assert np.abs(logits_with(plain, lora, IDS) - wanted).max() < 1e-4
    assert main(arguments) == 2  # it is there
    found = read_gguf(lora)
    assert found.metadata["general.type"] == "adapter" and found.metadata["adapter.type"] == "lora"
    assert found.metadata["adapter.lora.alpha"] == 16.0
    shapes = {tensor.name: tensor.shape for tensor in found.tensors}
    assert shapes["blk.0.shortconv.in_proj.weight.lora_a"] == (8, 256)
    assert shapes["blk.0.shortconv.in_proj.weight.lora_b"] == (768, 8)


def test_experts_and_scalings_of_their_own(tmp_path: Path) -> None:
    """Experts in one tensor, rsLoRA's root, and an alpha of one module: llama.cpp knows one alpha and each rank."""
    base, lora = bundled.path("moe"), tmp_path / "lora.gguf"
    folder = make_adapter(
        base,
        tmp_path / "adapter",
        target_modules=["q_proj", "v_proj", "in_proj"],
        target_parameters=["experts.gate_up_proj", "experts.down_proj"],
        use_rslora=True,
        alpha_pattern={"v_proj": 2},
        rank_pattern={"v_proj": 3},
    )
    assert main(["lora", "bundled:moe", "--adapter", str(folder), "-o", str(lora), "-q", "F32"]) == 0
    plain, merged = (
        convert("bundled:moe", tmp_path / "plain"),
        convert("bundled:moe", tmp_path / "merged", "--adapter", str(folder), "--merge-dtype", "float32"),
    )
    wanted = logits_with(merged, None, IDS)
    assert np.abs(logits_with(plain, lora, IDS) - wanted).max() < 1e-3
    assert np.abs(logits_with(plain, None, IDS) - wanted).max() > 0.1


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"target_modules": ["q_proj"], "use_dora": True}, "is changed by DoRA"),
        ({"target_modules": ["q_proj"], "modules_to_save": ["q_layernorm"]}, "is replaced"),
        ({"target_modules": ["q_proj", "lm_head"]}, "the head is changed"),
    ],
    ids=["dora", "saved", "head"],
)
def test_what_llama_cpp_cannot_add_is_refused(
    settings: dict[str, object], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_adapter(bundled.path("dense"), tmp_path / "adapter", **settings)
    out = tmp_path / "lora.gguf"
    assert main(["lora", "bundled:dense", "--adapter", str(folder), "--out", str(out)]) == 5
    assert said in capsys.readouterr().err
    assert not out.exists() and not list(tmp_path.glob(".*"))
