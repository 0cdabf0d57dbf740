"""Small models that nothing of the validator was chosen on: other text, seeds, widths, depths, vocabularies and families.

    python tests/support/sweep_models.py FOLDER --seeds 0 1 2

A seed is a model. Of three, one is dense, one a mixture and one LFM3; two of four are trained for a minute on the Python
standard library's own files, the others keep the weights they were drawn with. Needs torch and transformers.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

if not __package__:  # run as a script
    import sys

    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.checkpoints import make_checkpoint
from support.configs import dense_25_config, lfm3_config, moe_config

_KINDS = ("dense", "moe", "lfm3")
_ROW, _N_ROWS = 128, 8
_PEAK_RATE, _WARM_UP = 2e-3, 20
_N_FILES = 120
_DONE = "sweep.json"


def model(cache: Path, seed: int) -> Path:
    """The checkpoint of a seed, made where it is missing."""
    folder = cache / f"{_kind(seed)}-{seed}"
    if not (folder / _DONE).exists():
        shutil.rmtree(folder, ignore_errors=True)
        _make(folder, seed)
        (folder / _DONE).write_text(json.dumps({"seed": seed, "is_trained": is_trained(seed)}))
    return folder


def is_trained(seed: int) -> bool:
    return seed % 4 < 2


def _kind(seed: int) -> str:
    return _KINDS[seed % 3]


def _config(seed: int) -> dict[str, Any]:
    rng = Random(seed)
    hidden, n_heads = rng.choice([(64, 2), (128, 4), (192, 4), (256, 4)])
    n_layers, kind = rng.randint(3, 8), _kind(seed)
    fields: dict[str, Any] = {
        "hidden_size": hidden,
        "num_hidden_layers": n_layers,
        "num_attention_heads": n_heads,
        "num_key_value_heads": rng.choice([1, n_heads // 2, n_heads]),
        "vocab_size": rng.choice([512, 1024, 2048]),
        "intermediate_size": rng.choice([128, 256, 512]),
        "norm_eps": rng.choice([1e-5, 1e-6]),
        "max_position_embeddings": 8192,
    }
    if kind == "lfm3":
        return lfm3_config(
            **{**fields, "num_hidden_layers": max(5, n_layers)},
            head_dim=rng.choice([32, 64]),
            sliding_window=rng.choice([16, 40, 100]),
            conv_L_cache=rng.choice([3, 7]),
        )
    attention = tuple(sorted(rng.sample(range(n_layers), max(1, n_layers // 3))))
    if kind == "dense":
        return dense_25_config(**fields, attention=attention)
    n_experts = rng.choice([4, 8, 16])
    return moe_config(
        **fields,
        attention=attention,
        num_experts=n_experts,
        num_experts_per_tok=rng.choice([2, 4]),
        moe_intermediate_size=rng.choice([64, 128]),
        routed_scaling_factor=rng.choice([1.0, 2.5]),
        use_expert_bias=rng.random() < 0.8,
    )


def _make(folder: Path, seed: int) -> None:
    config = _config(seed)
    make_checkpoint(folder, config, seed=seed, tokenizer=False)
    tokenizer = _tokenizer(folder, config["vocab_size"], seed)
    if is_trained(seed):
        _train(folder, [tokenizer.encode(text).ids for text in _texts(seed)], seed)


def _texts(seed: int) -> Iterator[str]:
    """Files of the standard library, others for each seed."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")) + sorted(
        Path(sysconfig.get_path("stdlib")).glob("*/*.py")
    )
    files = [path for path in files if "site-packages" not in path.parts and path.stat().st_size > 2000]
    for path in Random(seed).sample(files, _N_FILES):
        yield path.read_text(encoding="utf-8", errors="ignore")[:20_000]


def _tokenizer(folder: Path, vocab_size: int, seed: int) -> Any:
    from lfm_convert.convert.bundled.making import tokenizer

    found = tokenizer.train(_texts(seed), vocab_size=vocab_size)
    tokenizer.write(found, folder)
    return found


def _train(folder: Path, documents: list[list[int]], seed: int) -> None:
    """A minute of AdamW on rows of the documents, laid end to end."""
    import torch
    from lfm_convert.convert.bundled.making.train import rate_factor
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(seed)
    torch.set_num_threads(1)
    config = AutoConfig.from_pretrained(folder)
    if config.model_type == "lfm3":
        config.rope_parameters["full_attention"]["rope_type"] = "proportional"
    model = AutoModelForCausalLM.from_pretrained(folder, config=config, dtype=torch.float32)
    rng, stream = Random(seed), [token for document in documents for token in document]
    steps = 100 + 50 * (seed % 3)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = _PEAK_RATE * rate_factor(step, steps=steps) * min(1, (step + 1) / _WARM_UP)
        starts = [rng.randrange(len(stream) - _ROW) for _ in range(_N_ROWS)]
        batch = torch.tensor([[1, *stream[start : start + _ROW - 1]] for start in starts])
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    raw = json.loads((folder / "config.json").read_text())
    model.to(torch.bfloat16).save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(raw, indent=2))  # as released, not as transformers spells it
    print(f"{folder.name}: loss {loss.item():.2f} after {steps} steps", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", required=True)
    options = parser.parse_args()
    for seed in options.seeds:
        print(model(options.folder, seed), flush=True)


if __name__ == "__main__":
    main()
