from __future__ import annotations

from pathlib import Path

import pytest
from lfm_convert.convert import bundled
from lfm_convert.graph.errors import InputError, UsageError
from lfm_convert.graph.opening import open_graph
from lfm_convert.validate.metrics import score_prompt, summarize
from lfm_convert.validate.probes import LONG_CHUNKS
from lfm_convert.validate.prompts import EncodedPrompt, encode_prompts, load_prompts
from lfm_convert.validate.suites import check_stored_ids, choose_prompts, smoke

GRAPH = open_graph(bundled.path("dense"))


@pytest.fixture(scope="module")
def encoded() -> tuple[EncodedPrompt, ...]:
    return encode_prompts(load_prompts(), GRAPH.tokenizer, GRAPH.assets, vocab_size=GRAPH.config.vocab_size)


def test_the_standard_suite_covers_what_it_says(encoded: tuple[EncodedPrompt, ...]) -> None:
    prompts = load_prompts()
    assert len(prompts) >= 64
    assert {p.language for p in prompts} >= {"en", "ar", "zh", "fr", "de", "ja", "ko", "es"}
    assert {p.kind for p in prompts} == {"short", "text", "code", "chat", "tools", "long"}
    lengths = {len(p.token_ids) for p in encoded}
    assert lengths >= {1, 2, 3, 4} and max(lengths) > sum(LONG_CHUNKS)


def test_stored_ids_are_what_the_tokenizer_gives(encoded: tuple[EncodedPrompt, ...]) -> None:
    check_stored_ids(encoded, load_prompts(), GRAPH.tokenizer, GRAPH.assets)
    drifted = (EncodedPrompt("en-harbour", (1, 2, 3), text="x"),)
    with pytest.raises(InputError, match="'en-harbour'"):
        check_stored_ids(drifted, load_prompts(), GRAPH.tokenizer, GRAPH.assets)
    check_stored_ids(drifted, load_prompts(), None, GRAPH.assets)  # another tokenizer: nothing is stored for it


def test_smoke_is_a_small_part_with_every_language() -> None:
    prompts = load_prompts()
    found = smoke(prompts)
    assert len(found) < 20 and {p.language for p in found} == {p.language for p in prompts}
    assert choose_prompts(None, suite="smoke") == found


def test_a_text_is_cut_as_llama_perplexity_does(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("The ferry left the harbour late. " * 300)
    ids = GRAPH.tokenizer.encode(path.read_text())
    chunks = choose_prompts(GRAPH.tokenizer, text=path)
    assert len(chunks) == len(ids) // 512
    assert all(len(c.ids) == 512 and c.ids[0] == 1 and c.scored == (256, 511) for c in chunks)
    assert list(chunks[1].ids[1:]) == ids[513:1024]
    assert len(choose_prompts(GRAPH.tokenizer, text=path, n_chunks=2)) == 2


def test_only_scored_positions_count() -> None:
    import numpy as np

    rng = np.random.default_rng(0)
    reference, artifact = rng.normal(size=(2, 8, 6)).astype(np.float32)
    prompt = EncodedPrompt("p", (0, 1, 2, 3, 4, 5, 0, 1), scored=(4, 7))
    score = score_prompt(prompt, reference, artifact)
    whole = score_prompt(EncodedPrompt("p", prompt.token_ids), reference, artifact)
    assert (score.kld == whole.kld[4:7]).all() and (score.log_prob_loss == whole.log_prob_loss[4:7]).all()
    worst = summarize([score], [prompt]).worst[0]
    assert worst.position in (4, 5, 6) and worst.token == prompt.token_ids[worst.position]


def test_what_proves_nothing_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "text.txt"
    path.write_text("too short")
    with pytest.raises(UsageError, match="two chunks"):
        choose_prompts(GRAPH.tokenizer, text=path)
    with pytest.raises(InputError, match=r"no tokenizer\.json"):
        choose_prompts(None, text=path)
    with pytest.raises(UsageError, match="unknown suite"):
        choose_prompts(None, suite="huge")
    with pytest.raises(UsageError, match="either"):
        choose_prompts(None, prompts=path, text=path)
