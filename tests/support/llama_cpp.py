"""llama.cpp's own converter, from the sources that the llama-cpp-python package carries, and a vocabulary it knows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

VERSION = "0.3.36"
_TREE = f"llama_cpp_python-{VERSION}/vendor/llama.cpp/"
_NEEDED = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/", "models/ggml-vocab-llama-bpe.gguf")
# `PATCH` is run in the converter's process before it starts.
_CONVERT = """
import logging, runpy, sys
sys.path[:0] = [sys.argv[1], sys.argv[1] + "/gguf-py"]
PATCH
logging.disable()
sys.argv = ["convert_hf_to_gguf.py", *sys.argv[2:]]
runpy.run_path(sys.path[0] + "/convert_hf_to_gguf.py", run_name="__main__")
"""
# The table from the hash of a probe text's ids to a name has no entry for a vocabulary made by a test.
KNOWN_AS_LFM2 = 'from conversion.base import TextModel; TextModel.get_vocab_base_pre = lambda self, tokenizer: "lfm2"'

_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def sources() -> Path:
    """The tree with the converter: fetched with pip at first use, then kept. Skips the test if pip cannot fetch it."""
    base = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lfm-convert" / f"llama-cpp-{VERSION}"
    tree = base / _TREE
    if not (base / "complete").is_file():
        base.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
        fetched = subprocess.run([*command, "--dest", base, f"llama-cpp-python=={VERSION}"], capture_output=True)
        if fetched.returncode:
            pytest.skip(f"pip could not fetch llama-cpp-python {VERSION}: {fetched.stderr.decode()[-300:]}")
        archive = base / f"llama_cpp_python-{VERSION}.tar.gz"
        with tarfile.open(archive) as packed:
            wanted = [m for m in packed if m.isfile() and m.name.startswith(tuple(_TREE + name for name in _NEEDED))]
            packed.extractall(base, wanted, filter="data")
        archive.unlink()
        (base / "complete").touch()
    return tree


def convert_command(checkpoint: Path, out: Path, outtype: str, *, patch: str = "") -> list[str]:
    """The command line that runs `convert_hf_to_gguf.py`."""
    script = _CONVERT.replace("PATCH", patch)
    command = [sys.executable, "-c", script, sources(), checkpoint, "--outtype", outtype, "--outfile", out]
    return [str(part) for part in command]


def convert(checkpoint: Path, out: Path, outtype: str, *, patch: str = "") -> Path:
    """The file the converter writes; `out` may be a folder, in which it names the file itself."""
    done = subprocess.run(convert_command(checkpoint, out, outtype, patch=patch), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return next(out.glob("*.gguf")) if out.is_dir() else out


def write_llama_bpe(folder: Path) -> int:
    """Replaces a checkpoint's tokenizer by Llama 3's, made from llama.cpp's test vocabulary; returns its size.

    The converter knows it by its hash as `llama-bpe`. Its split expression is LFM2's.
    """
    import gguf

    fields = gguf.GGUFReader(sources() / "models/ggml-vocab-llama-bpe.gguf").fields
    tokens, types, merges = (fields[f"tokenizer.ggml.{key}"].contents() for key in ("tokens", "token_type", "merges"))
    control = [i for i, kind in enumerate(types) if kind == gguf.TokenType.CONTROL]
    flags = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    bos = {"id": "<|begin_of_text|>", "type_id": 0}
    pieces = [{"SpecialToken": bos}, {"Sequence": {"id": "A", "type_id": 0}}]
    second = [{"SpecialToken": {**bos, "type_id": 1}}, {"Sequence": {"id": "B", "type_id": 1}}]
    listed = {bos["id"]: {"id": bos["id"], "ids": [tokens.index(bos["id"])], "tokens": [bos["id"]]}}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    split = {"type": "Split", "pattern": {"Regex": _SPLIT}, "behavior": "Isolated", "invert": False}
    vocab = {text: i for i, text in enumerate(tokens) if i not in set(control)}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{"id": i, "content": tokens[i], **flags, "special": True} for i in control],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, byte_level]},
        "post_processor": {
            "type": "TemplateProcessing", "single": pieces, "pair": [*pieces, *second], "special_tokens": listed,
        },
        "decoder": {**byte_level, "add_prefix_space": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
            "vocab": vocab, "merges": merges,
        },
    }  # fmt: skip
    named = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    config = {"clean_up_tokenization_spaces": False, "tokenizer_class": "PreTrainedTokenizerFast", **named}
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "special_tokens_map.json").write_text(json.dumps(named), encoding="utf-8")
    return len(tokens)
