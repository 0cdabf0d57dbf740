"""Names and model cards as metadata: the same as gguf-py makes of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lfm_convert.graph.source.front_matter import front_matter
from lfm_convert.targets.gguf.card import card_metadata
from lfm_convert.targets.gguf.file_names import ModelId, model_id, title

N_PARAMETERS = 1_170_340_608
NAMES = (
    "LFM2-350M", "LFM2-8B-A1B", "LFM2.5-1.2B-JP-202606", "LFM2-350M-ENJP-MT", "LFM2-1.2B-Instruct-v2", "bloom-7b1",
    "LiquidAI/LFM2-1.2B-chat", "my-model", "my-small-1B-model", "x-v1.2", "a--b", "LFM2-1.2B-4K", "Mixtral-8x7B-v0.1",
    "a/b/c", "./x", "mini", "q4_0-model", "LFM2-Q4_K_M", "7b", "x-1_2B", "v1", "2024-model", "a sentence of words",
)  # fmt: skip
WORDS = [
    "LFM2",
    "LFM2.5",
    "1.2B",
    "350m",
    "8B",
    "A1B",
    "v1",
    "2",
    "3.1",
    "small",
    "xl",
    "chat",
    "Instruct",
    "Q4_0",
    "bf16",
    "4k",
    "128K",
    "JP",
    "x",
    "iter2",
    "7b1",
    "32x1B",
    "tool",
]
CARDS = (
    "",
    "license: other\nlicense_name: lfm1.0\nlicense_link: LICENSE\n",
    "license: [mit, apache-2.0]\ntags: [a, b]\npipeline_tag: text-generation\nlanguage:\n- en\n- no\n- ja\n",
    "base_model: LiquidAI/LFM2-1.2B\nbase_model_relation: finetune\n",
    "base_model:\n- LiquidAI/LFM2-1.2B-chat-v2\n- https://huggingface.co/a/LFM2-350M-v2\n- https://x.org/m\n- plain\n",
    "base_models: [{name: A, repo_url: https://x.org, version: v1, other: x}]\ndatasets: [o/text-v1.1, plain]\n",
    "model_name: A Name\nmodel_creator: Someone\nmodel_type: lfm2\nversion: v3\ndescription: What it is\n",
    "name: Given\norganization: Org\nbasename: Base\nfinetune: Fine\nsize_label: 9B\nurl: https://x.org\ndoi: 1/2\n",
    "language: en\ntags: one\ndataset: https://huggingface.co/datasets\nbase_model:\n",
)


def test_parts_of_published_names() -> None:
    assert model_id("LiquidAI/LFM2.5-1.2B-JP-202606", N_PARAMETERS) == ModelId(
        name="LFM2.5-1.2B-JP-202606", organization="LiquidAI", basename="LFM2.5", finetune="JP", version="202606",
        size_label="1.2B",
    )  # fmt: skip
    assert model_id("LFM2-Tiny", N_PARAMETERS) == ModelId(name="LFM2-Tiny")  # too ambiguous
    assert title("LFM2-1.2B-chat-v2") == "LFM2 1.2B Chat v2"


@pytest.mark.peers
def test_parts_are_gguf_pys() -> None:
    gguf = pytest.importorskip("gguf")
    rng = np.random.default_rng(0)
    names = [*NAMES, *("-".join(rng.choice(WORDS, rng.integers(1, 7))) for _ in range(2000))]
    for name in names:
        for n in (350_000_000, N_PARAMETERS, 8_000_000_000):
            found = model_id(name, n)
            ours = found.name, found.organization, found.basename, found.finetune, found.version, found.size_label
            assert ours == gguf.Metadata.get_model_id_components(name, n), name
        assert title(name) == gguf.Metadata.id_to_title(name)


@pytest.mark.peers
@pytest.mark.parametrize("hub_name", [None, "LiquidAI/LFM2-1.2B-Base", "/home/me/checkpoint"])
@pytest.mark.parametrize("folder", ["LFM2-1.2B-Tool-v3", "my-model"])
@pytest.mark.parametrize("text", CARDS)
def test_metadata_is_gguf_pys(tmp_path: Path, text: str, folder: str, hub_name: str | None) -> None:
    gguf: Any = pytest.importorskip("gguf")
    card = f"---\n{text}---\n# A model\n"
    (tmp_path / folder).mkdir()
    (tmp_path / folder / "README.md").write_text(card)
    hf = {} if hub_name is None else {"_name_or_path": hub_name}
    found = gguf.Metadata.apply_metadata_heuristic(
        gguf.Metadata(), gguf.Metadata.load_model_card(tmp_path / folder), hf, tmp_path / folder, N_PARAMETERS
    )
    found.size_label = found.size_label or "1.2B"
    writer = gguf.GGUFWriter(None, "lfm2")
    found.set_gguf_meta_model(writer)
    theirs = {key: value.value for key, value in writer.kv_data[0].items() if key != "general.architecture"}
    pairs = card_metadata(
        front_matter(card), folder_name=folder, hub_name=hub_name, n_parameters=N_PARAMETERS, size_label="1.2B"
    )
    assert [(pair.key, pair.value) for pair in pairs] == list(theirs.items())
