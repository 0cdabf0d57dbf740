"""Random LFM2 and LFM3 checkpoints of any shape, written without torch and streamed, so that billions of weights need little memory.

    make_checkpoint(folder, moe_config(num_experts=16), shards=2)
    python tests/support/checkpoints.py --kind moe-1.2b OUT

Weights are normal with deviation 1/sqrt(inputs) (0.02 to 0.1 for real sizes), norm gains lie around one,
expert biases are float32 and not zero. A tensor depends on the seed and its name only: shards, fused
experts and order do not change a value. The names are written here again, not taken from the converter.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

if not __package__:  # run as a script
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.bpe import MAX_TOKENS, write_tokenizer
from support.configs import PRESETS, Config, dense_25_config, dense_config, lfm3_config, moe_config, preset
from support.safetensors_files import Declared, bfloat16_bytes, write_declared

__all__ = ["dense_25_config", "dense_config", "lfm3_config", "make_checkpoint", "moe_config", "preset"]

_CHUNK = 1 << 20
_DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


@dataclass(frozen=True)
class _Random:
    """A tensor to draw: `pieces` are the names whose values follow each other in it."""

    shape: tuple[int, ...]
    deviation: float
    mean: float = 0.0
    dtype: str = ""
    pieces: tuple[str, ...] = ()


def make_checkpoint(
    folder: Path,
    config: Config | None = None,
    *,
    dtype: str = "bfloat16",
    shards: int = 1,
    fused_experts: bool = False,
    seed: int = 0,
    tokenizer: bool = True,
) -> Path:
    """Writes a checkpoint folder and returns it. `config` is a config dict, tiny dense by default.

    `dtype` is bfloat16, float16 or float32; `shards` above one writes an index.
    """
    config = dense_config() if config is None else config
    key = "dtype" if "dtype" in config else "torch_dtype"
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "config.json", {**config, key: dtype})
    generation = {"bos_token_id": 1, "do_sample": False, "eos_token_id": 7, "pad_token_id": 0}
    _write_json(folder / "generation_config.json", generation)
    if tokenizer:
        if config["vocab_size"] < MAX_TOKENS:
            raise ValueError(f"vocab_size {config['vocab_size']} cannot hold the tokenizer's {MAX_TOKENS} ids")
        write_tokenizer(folder)
    tensors = _tensors(config, fused_experts)
    declared = {name: _declare(name, random, _DTYPES[dtype], seed) for name, random in tensors.items()}
    _write_shards(folder, declared, shards)
    return folder


def _tensors(config: Config, fused_experts: bool) -> dict[str, _Random]:
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    tensors = {"model.embed_tokens.weight": _Random((vocab, hidden), 2 / math.sqrt(hidden))}
    tensors["model.embedding_norm.weight"] = _gain(hidden)
    if not config.get("tie_word_embeddings", config.get("tie_embedding", True)):
        tensors["lm_head.weight"] = _Random((vocab, hidden), 2 / math.sqrt(hidden))
    for layer in range(config["num_hidden_layers"]):
        is_lfm3 = config["model_type"] == "lfm3"
        attention = _gated_attention if is_lfm3 else _attention
        operator = attention(config) if _is_attention(config, layer) else _conv(config)
        is_moe = config["model_type"] == "lfm2_moe" and layer >= config["num_dense_layers"]
        feed_forward = _experts(config) if is_moe else _dense(config)
        named = {"operator_norm.weight": _gain(hidden), "ffn_norm.weight": _gain(hidden), **operator, **feed_forward}
        if is_lfm3 and config.get("use_sandwich_norm", True):
            named |= {"post_operator_norm.weight": _gain(hidden), "post_ffn_norm.weight": _gain(hidden)}
        prefix = f"model.layers.{layer}."
        named = {prefix + name: random for name, random in named.items()}
        tensors |= _fuse(config, prefix, named) if is_moe and fused_experts else named
    return tensors


def _matrix(n_out: int, n_in: int) -> _Random:
    return _Random((n_out, n_in), 1 / math.sqrt(n_in))


def _gain(size: int) -> _Random:
    return _Random((size,), 0.1, 1.0)


def _conv(config: Config) -> dict[str, _Random]:
    hidden, width = config["hidden_size"], config["conv_L_cache"]
    tensors = {
        "conv.in_proj.weight": _matrix(3 * hidden, hidden),
        "conv.conv.weight": _Random((hidden, 1, width), 1 / math.sqrt(width)),
        "conv.out_proj.weight": _matrix(hidden, hidden),
    }
    if config["conv_bias"]:
        for name, size in (("in_proj", 3 * hidden), ("conv", hidden), ("out_proj", hidden)):
            tensors[f"conv.{name}.bias"] = _Random((size,), 0.1)
    return tensors


def _attention(config: Config) -> dict[str, _Random]:
    hidden, n_heads, n_kv_heads = (config[key] for key in ("hidden_size", "num_attention_heads", "num_key_value_heads"))
    size = config.get("head_dim", hidden // n_heads)
    return {
        "self_attn.q_proj.weight": _matrix(n_heads * size, hidden),
        "self_attn.k_proj.weight": _matrix(n_kv_heads * size, hidden),
        "self_attn.v_proj.weight": _matrix(n_kv_heads * size, hidden),
        "self_attn.out_proj.weight": _matrix(hidden, n_heads * size),
        "self_attn.q_layernorm.weight": _gain(size),
        "self_attn.k_layernorm.weight": _gain(size),
    }


def _gated_attention(config: Config) -> dict[str, _Random]:
    """LFM3's: other names, and a gate a head."""
    names = {"out_proj": "o_proj", "q_layernorm": "q_norm", "k_layernorm": "k_norm"}
    tensors = {}
    for name, random in _attention(config).items():
        scope, part, kind = name.split(".")
        tensors[f"{scope}.{names.get(part, part)}.{kind}"] = random
    if config.get("attention_bias", False):
        shapes = {name: random.shape for name, random in tensors.items() if name.endswith("_proj.weight")}
        tensors |= {name.replace(".weight", ".bias"): _Random(shape[:1], 0.1) for name, shape in shapes.items()}
    if config.get("use_attention_gate", True):
        tensors["self_attn.gate_proj.weight"] = _matrix(config["num_attention_heads"], config["hidden_size"])
    return tensors


def _dense(config: Config) -> dict[str, _Random]:
    hidden, ffn = config["hidden_size"], _ffn_size(config)
    return {
        "feed_forward.w1.weight": _matrix(ffn, hidden),
        "feed_forward.w3.weight": _matrix(ffn, hidden),
        "feed_forward.w2.weight": _matrix(hidden, ffn),
    }


def _experts(config: Config) -> dict[str, _Random]:
    hidden, size, n = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    tensors = {"feed_forward.gate.weight": _matrix(n, hidden)}
    if config["use_expert_bias"]:
        tensors["feed_forward.expert_bias"] = _Random((n,), 0.1, dtype="F32")
    for expert in range(n):
        prefix = f"feed_forward.experts.{expert}."
        tensors[prefix + "w1.weight"] = _matrix(size, hidden)
        tensors[prefix + "w3.weight"] = _matrix(size, hidden)
        tensors[prefix + "w2.weight"] = _matrix(hidden, size)
    return tensors


def _fuse(config: Config, prefix: str, tensors: dict[str, _Random]) -> dict[str, _Random]:
    """The same values in the form transformers saves: [E, 2M, H] gate rows then up rows, and [E, H, M]."""
    n, start = config["num_experts"], f"{prefix}feed_forward.experts."
    kept = {name: random for name, random in tensors.items() if not name.startswith(start)}
    for fused, parts in (("gate_up_proj", ("w1", "w3")), ("down_proj", ("w2",))):
        pieces = tuple(f"{start}{expert}.{part}.weight" for expert in range(n) for part in parts)
        n_out, n_in = tensors[pieces[0]].shape
        deviation = tensors[pieces[0]].deviation
        kept[start + fused] = _Random((n, len(parts) * n_out, n_in), deviation, pieces=pieces)
    return kept


def _is_attention(config: Config, layer: int) -> bool:
    if "layer_types" in config:
        return config["layer_types"][layer] != "conv"
    return layer in config["full_attn_idxs"]


def _ffn_size(config: Config) -> int:
    size = config.get("block_ff_dim") or config["intermediate_size"]
    if config["model_type"] != "lfm2" or not config.get("block_auto_adjust_ff_dim", True):
        return size
    multiple = config.get("block_multiple_of", 256)
    size = int(config.get("block_ffn_dim_multiplier", 1.0) * int(2 * size / 3))
    return math.ceil(size / multiple) * multiple


def _declare(name: str, random: _Random, dtype: str, seed: int) -> Declared:
    dtype = random.dtype or dtype
    pieces = random.pieces or (name,)

    def chunks() -> Iterator[bytes]:
        for piece in pieces:
            yield from _draw(random, piece, math.prod(random.shape) // len(pieces), dtype, seed)

    return Declared(dtype, random.shape, chunks)


def _draw(random: _Random, name: str, size: int, dtype: str, seed: int) -> Iterator[bytes]:
    generator = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    for start in range(0, size, _CHUNK):
        values = generator.standard_normal(min(_CHUNK, size - start), np.float32)
        values *= np.float32(random.deviation)
        values += np.float32(random.mean)
        if dtype == "BF16":
            yield bfloat16_bytes(values)
        else:
            yield values.astype("<f2" if dtype == "F16" else "<f4").tobytes()


def _write_shards(folder: Path, tensors: Mapping[str, Declared], n_shards: int) -> None:
    if n_shards == 1:
        write_declared(folder / "model.safetensors", tensors)
        return
    total = sum(tensor.nbytes for tensor in tensors.values())
    names = [f"model-{i + 1:05d}-of-{n_shards:05d}.safetensors" for i in range(n_shards)]
    weight_map, before = {}, 0
    for name, tensor in tensors.items():
        weight_map[name] = names[before * n_shards // total]
        before += tensor.nbytes
    for shard in names:
        write_declared(folder / shard, {n: tensors[n] for n, home in weight_map.items() if home == shard})
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    _write_json(folder / "model.safetensors.index.json", index)


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description="Writes a random checkpoint.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kind", choices=PRESETS, default="tiny-dense")
    parser.add_argument("--dtype", choices=_DTYPES, default="bfloat16")
    parser.add_argument("--shards", type=int, help="default: 4 for models beyond a billion weights, else 1")
    parser.add_argument("--fused-experts", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-tokenizer", action="store_true")
    options = parser.parse_args()
    config = preset(options.kind)
    n_weights = sum(math.prod(t.shape) for t in _tensors(config, options.fused_experts).values())
    shards = options.shards or (4 if n_weights > 10**9 else 1)
    make_checkpoint(
        options.folder,
        config,
        dtype=options.dtype,
        shards=shards,
        fused_experts=options.fused_experts,
        seed=options.seed,
        tokenizer=not options.no_tokenizer,
    )
    print(f"{options.folder}: {options.kind}, {n_weights:,} weights, {shards} shard(s), {options.dtype}")


if __name__ == "__main__":
    main()
