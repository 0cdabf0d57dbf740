"""What is fuzzed: each reader of files that others made, with small files to start from.

A reader gets any bytes. It returns, or raises an LfmConvertError: anything else is a finding.
"""

from __future__ import annotations

import io
import json
import os
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lfm_convert.convert import pipeline
from lfm_convert.convert.artifacts import find_artifacts, verified
from lfm_convert.convert.cli.inspect import _artifacts
from lfm_convert.convert.manifest import MANIFEST_FILE, load_manifest
from lfm_convert.convert.recipe.reading import load_recipe
from lfm_convert.convert.statistics import write_statistics
from lfm_convert.graph.adapters.adapter import WEIGHTS, adapting
from lfm_convert.graph.config import CONFIG_FILE
from lfm_convert.graph.opening import open_graph
from lfm_convert.graph.progress import SILENT
from lfm_convert.graph.source import chat, chat_child
from lfm_convert.graph.source.adapters import ADAPTER_CONFIG
from lfm_convert.graph.source.config_file import load_config
from lfm_convert.graph.source.tokenizer import TOKENIZER_FILE
from lfm_convert.quantize.calibration import Use
from lfm_convert.quantize.gguf_file.reader import read_gguf
from lfm_convert.quantize.imatrix import importance_bytes, read_importance
from lfm_convert.quantize.statistics.layout import STATISTICS_FILE
from lfm_convert.quantize.statistics.statistics import open_statistics
from lfm_convert.targets.coreml.package import MODEL
from lfm_convert.targets.coreml.structure import check_package
from lfm_convert.targets.gguf.vocab import vocabulary
from lfm_convert.targets.target import get_target, open_artifact
from lfm_convert.validate.prompts import load_prompts
from support.artifacts import write_artifact
from support.checkpoints import dense_config, make_checkpoint, moe_config
from support.family_configs import PUBLISHED, small
from support.made_adapters import write_adapter
from support.quantised_layouts import LAYOUTS, READ_BY_CONFIG, quantise
from support.safetensors_files import Declared, edit_tensors, write_declared

# Whether this process may be forked, which saves the start of another: threads of libraries do not survive it, and
# locks that they hold stay held.
FORKS = False
_CHAT_SECONDS, _CHAT_MEMORY = 1.0, 512 << 20
_SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "attention": (1,), "block_ff_dim": 96, "block_multiple_of": 32}
_SMALL_MOE = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "attention": (1,),
    "moe_intermediate_size": 64,
    "num_experts": 4,
}


@dataclass(frozen=True)
class Reader:
    """`seeds` makes files in a folder; `read` puts bytes where its reader looks for them, in another, and reads."""

    name: str
    seeds: Callable[[Path], Iterator[bytes]]
    read: Callable[[bytes, Path], object]
    is_guided: bool = True


@cache
def _model(folder: Path) -> Path:
    """A checkpoint beside which a fuzzed file lies; made once a process and folder."""
    return make_checkpoint(folder / "model", moe_config(**_SMALL_MOE))


def _read_file(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    def run(data: bytes, folder: Path) -> object:
        path = folder / name
        path.write_bytes(data)
        return read(path)

    return run


def _in_checkpoint(name: str, read: Callable[[Path], object]) -> Callable[[bytes, Path], object]:
    """Puts the bytes in place of one file of a checkpoint, so that what uses the file is fuzzed too."""

    def run(data: bytes, folder: Path) -> object:
        model = _model(folder)
        (model / name).write_bytes(data)
        return read(model)

    return run


def _safetensors_seeds(folder: Path) -> Iterator[bytes]:
    yield (_model(folder) / "model.safetensors").read_bytes()
    fused = make_checkpoint(folder / "fused", moe_config(**_SMALL_MOE), fused_experts=True)
    yield (fused / "model.safetensors").read_bytes()
    write_declared(folder / "one.safetensors", {"a": Declared("F32", (2, 2), lambda: iter([bytes(16)]))})
    yield (folder / "one.safetensors").read_bytes()


def _read_weights(model: Path) -> object:
    graph = open_graph(model)
    return [weight.view.read() for weight in graph.weights()]


@cache
def _packed_model(folder: Path, layout: str) -> Path:
    """A checkpoint whose weights are packed; made once a process, folder and layout."""
    _, _, settings, parts = LAYOUTS[layout]
    model = make_checkpoint(folder / layout, dense_config(**_SMALL, quantization_config=settings), tokenizer=False)
    edit_tensors(model / "model.safetensors", lambda tensors: quantise(tensors, parts))
    return model


def _packed(reader: str, layout: str, name: str) -> Reader:
    """Fuzzes one file of a checkpoint of that layout."""

    def seeds(folder: Path) -> Iterator[bytes]:
        yield (_packed_model(folder, layout) / name).read_bytes()

    def read(data: bytes, folder: Path) -> object:
        model = _packed_model(folder, layout)
        (model / name).write_bytes(data)
        return _read_weights(model)

    return Reader(reader, seeds, read)


@cache
def _adapted(folder: Path) -> tuple[Path, Path]:
    """A checkpoint and an adapter of two of its matrices; made once a process and folder."""
    return make_checkpoint(folder / "adapted", dense_config(), tokenizer=False), write_adapter(folder / "adapter")


def _adapter(reader: str, name: str) -> Reader:
    """Fuzzes one file of an adapter, and reads the weights that it is merged into."""

    def seeds(folder: Path) -> Iterator[bytes]:
        yield (_adapted(folder)[1] / name).read_bytes()

    def read(data: bytes, folder: Path) -> object:
        model, adapter = _adapted(folder)
        (adapter / name).write_bytes(data)
        graph = pipeline.open_model(str(model), adapters=adapting([adapter]))
        return [weight.view.read() for weight in graph.layers[0].weights.values()]

    return Reader(reader, seeds, read)


def _index_seeds(folder: Path) -> Iterator[bytes]:
    sharded = make_checkpoint(folder / "sharded", moe_config(**_SMALL_MOE), shards=2)
    yield (sharded / "model.safetensors.index.json").read_bytes()
    yield b'{"weight_map": {"a": "model.safetensors"}}'


def _gguf_seeds(folder: Path) -> Iterator[bytes]:
    graph = open_graph(_model(folder))
    for quant in ("Q4_0", "F16"):
        yield write_artifact(graph, "gguf", quant, folder / quant).path.read_bytes()
    yield struct.pack("<4sIQQ", b"GGUF", 3, 0, 0) + bytes(8)


def _config_seeds(folder: Path) -> Iterator[bytes]:
    for path in sorted((Path(__file__).parents[1] / "fixtures" / "configs").glob("*.json"))[:12]:
        yield path.read_bytes()
    for config in (dense_config(**_SMALL), moe_config(**_SMALL_MOE), *map(small, PUBLISHED)):
        yield json.dumps(config).encode()


def _read_config(path: Path) -> object:
    return load_config(path.parent)


def _tokenizer_seeds(folder: Path) -> Iterator[bytes]:
    yield (_model(folder) / TOKENIZER_FILE).read_bytes()
    yield b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "added_tokens": []}'


def _read_tokenizer(model: Path) -> object:
    graph = open_graph(model, weights=False)
    return graph.tokenizer and (vocabulary(graph), vocabulary(graph, pre="lfm2"), graph.tokenizer.encode("a <b> é"))


def _assets_seeds(folder: Path) -> Iterator[bytes]:
    yield (_model(folder) / "tokenizer_config.json").read_bytes()
    yield b'{"chat_template": [{"name": "default", "template": "x"}], "bos_token": {"content": "<s>"}}'
    yield b'{"bos_token": "<|startoftext|>", "eos_token": "<|im_end|>", "added_tokens_decoder": {"0": {"content": "<p>"}}}'


def _read_assets(model: Path) -> object:
    """Everything that every target writes beside its weights for this checkpoint."""
    graph = open_graph(model, weights=False)
    plans = [
        get_target(name).plan(graph, quant) for name, quant in (("gguf", "F16"), ("onnx", "q4f16"), ("mlx", "8bit"))
    ]
    return [get_target(plan.target).shared_files(graph, [plan]) for plan in plans]


def _imatrix_seeds(folder: Path) -> Iterator[bytes]:
    uses = {"blk.0.ffn_down.weight": Use(np.ones((1, 4), np.float32), np.ones(1, np.float32)),
            "blk.1.ffn_down_exps.weight": Use(np.ones((3, 2), np.float32), np.array([1, 0, 2], np.float32))}  # fmt: skip
    yield importance_bytes(uses, datasets=("a", "b"), n_chunks=2, chunk_size=512)
    legacy = struct.pack("<ii", 1, 1) + b"w" + struct.pack("<ii", 4, 2) + np.ones(2, "<f4").tobytes()
    yield legacy
    yield legacy + struct.pack("<ii", 7, 3) + b"txt"


def _read_importance(path: Path) -> object:
    found = read_importance(path)
    return found.metadata(), [found.of(name, n_slices=1, n_cols=values.size) for name, values in found.means.items()]


@cache
def _statistics(folder: Path) -> Path:
    """Statistics of a checkpoint, whose json is fuzzed; made once a process and folder."""
    out, text = folder / "statistics", folder / "text.txt"
    text.write_text("Two spoons lay on the sill. " * 40)
    write_statistics(open_graph(_model(folder)), [text], out)
    return out


def _statistics_seeds(folder: Path) -> Iterator[bytes]:
    yield (_statistics(folder) / STATISTICS_FILE).read_bytes()


def _read_statistics(data: bytes, folder: Path) -> object:
    graph, out = open_graph(_model(folder)), _statistics(folder)
    (out / STATISTICS_FILE).write_bytes(data)
    found = open_statistics(out, graph)
    addresses = [weight.address for weight in graph.weights()]
    read = [(found.columns(a), found.gradients(a), found.counts(a), found.moments(a)) for a in addresses]
    return found.chunks, found.texts, read


def _manifest_seeds(folder: Path) -> Iterator[bytes]:
    for target, quant in (("mlx", "8bit"), ("gguf", "Q4_0"), ("onnx", "q4")):
        out = folder / f"manifest-{target}"
        pipeline.convert(str(_model(folder)), target=target, quant=quant, out=out, validate_after=False)
        yield (out / MANIFEST_FILE).read_bytes()


def _read_manifest(data: bytes, folder: Path) -> object:
    out = folder / "out"
    if not out.exists():
        pipeline.convert(str(_model(folder)), target="mlx", quant="8bit", out=out, validate_after=False)
    (out / MANIFEST_FILE).write_bytes(data)
    manifest = load_manifest(out)
    artifacts = find_artifacts(out)
    _artifacts(out)
    for artifact in artifacts:
        get_target(artifact.target).with_options(artifact.options)
    return manifest and manifest.dumps(), verified(artifacts, SILENT)


def _toml_seeds(folder: Path) -> Iterator[bytes]:
    yield b'model = "x"\n[devices.phone]\nmax_size = "1.5GB"\ncontext = 4096\ntargets = ["gguf"]\nquants = ["Q4_0"]\n'
    yield b'[devices.a]\nmax_memory = 1\nmax_file_size = "2GiB"\n'
    yield b'[models.a]\nmodel = "x"\n[[artifacts]]\ntarget = "gguf"\nquants = ["Q4_0"]\noptions = { refine = true }\n'
    yield b'[calibration]\ntext = ["a"]\n[[artifacts]]\ntarget = "mlx"\ncalibrated = true\n[reports]\nhtml = "a"\n'


def _read_toml(path: Path) -> object:
    return load_recipe(path)


def _prompt_seeds(folder: Path) -> Iterator[bytes]:
    lines = (Path(chat.__file__).parents[2] / "validate" / "prompts.jsonl").read_bytes().splitlines()
    yield b"\n".join(lines[:3])
    yield b'{"id": "a", "ids": [1, 2]}\n{"id": "b", "messages": [{"role": "user", "content": "x"}], "tools": [{}]}'


def _template_seeds(folder: Path) -> Iterator[bytes]:
    yield (Path(chat.__file__).parents[2] / "convert" / "bundled" / "moe" / "chat_template.jinja").read_bytes()
    yield b"{{ bos_token }}{% for m in messages %}{{ m.role }}{{ m['content'] | tojson }}{% endfor %}{{ strftime_now('%Y') }}"
    yield b"{% generation %}{{ raise_exception('no') }}{% endgeneration %}{% set n = namespace(x=1) %}{{ n.x ** 9 }}"


def _read_template(data: bytes, folder: Path) -> object:
    """As `render_chats` does; where processes may be forked, the child is a fork of this one."""
    conversation = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<b>"}]
    before = chat.subprocess.run  # type: ignore[attr-defined]
    if FORKS:
        chat.subprocess.run = _forked  # type: ignore[attr-defined]
    try:
        return chat.render_chats(
            data.decode("utf-8", "replace"),
            [conversation],
            special_tokens={"bos_token": "<s>"},
            tools=[{"name": "t"}],
            seconds=_CHAT_SECONDS,
        )
    finally:
        chat.subprocess.run = before  # type: ignore[attr-defined]


def _forked(command: list[str], *, input: bytes, timeout: float, **_: Any) -> subprocess.CompletedProcess[bytes]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(reading)
            signal.alarm(int(timeout) + 1)
            sys.stdin, sys.stdout = io.TextIOWrapper(io.BytesIO(input)), os.fdopen(writing, "w", encoding="utf-8")
            chat_child.main()
            sys.stdout.flush()
            os._exit(0)
        finally:
            os._exit(1)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        output = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGALRM:
        raise subprocess.TimeoutExpired(command, timeout)
    return subprocess.CompletedProcess(command, os.waitstatus_to_exitcode(status), output)


def _mlx_seeds(folder: Path) -> Iterator[bytes]:
    artifact = write_artifact(open_graph(_model(folder)), "mlx", "8bit", folder / "mlx")
    yield artifact.path.read_bytes()


def _artifact_reader(target: str, quant: str) -> Callable[[bytes, Path], object]:
    """Reads every weight of an artifact whose main file holds the bytes."""

    def run(data: bytes, folder: Path) -> object:
        made = _artifact(target, quant, folder)
        made.path.write_bytes(data)
        views = get_target(target).read(made)
        return [view.read() for view in views.values()]

    return run


@cache
def _artifact(target: str, quant: str, folder: Path) -> Any:
    made = write_artifact(open_graph(_model(folder)), target, quant, folder / f"{target}-{quant}")
    object.__setattr__(made, "entry", {"options": {}, "quant": quant})
    return made


def _artifact_seeds(target: str, quant: str) -> Callable[[Path], Iterator[bytes]]:
    def make(folder: Path) -> Iterator[bytes]:
        yield _artifact(target, quant, folder).path.read_bytes()

    return make


def _foreign_reader(target: str, quant: str) -> Callable[[bytes, Path], object]:
    """Recognises an artifact of an unknown writer by its bytes, and reads what weights it can."""

    def run(data: bytes, folder: Path) -> object:
        made = _artifact(target, quant, folder)
        made.path.write_bytes(data)
        found = find_artifacts(made.path)
        return [view.read() for each in found for view in get_target(each.target).read(each).values()]

    return run


def _source_reader(target: str, quant: str) -> Callable[[bytes, Path], object]:
    """Opens an artifact of an unknown writer as a source, and reads all of it that a conversion reads."""

    def run(data: bytes, folder: Path) -> object:
        made = _artifact(target, quant, folder)
        made.path.write_bytes(data)
        graph = open_artifact(made.path if target == "gguf" else made.path.parent)
        if graph is None:
            return None
        text = graph.tokenizer and graph.tokenizer.encode("a <b> é")
        plans = [get_target(name).plan(graph, quant) for name, quant in (("gguf", "Q4_0"), ("mlx", "4bit-g32"))]
        rows = [weight.view.read() for weight in graph.weights()]
        return text, plans, rows, [w.view.stored_rows(0, 1) for w in graph.weights() if w.view.stored_as]

    return run


def _program_seeds(folder: Path) -> Iterator[bytes]:
    yield (_artifact("coreml", "int8", folder).path.parent / MODEL).read_bytes()


def _read_package(data: bytes, folder: Path) -> object:
    """Looks through a Core ML package whose program is the bytes, and reads every weight that it names."""
    made = _artifact("coreml", "int8", folder)
    (made.path.parent / MODEL).write_bytes(data)
    return check_package(made.path.parent), [view.read() for view in get_target("coreml").read(made).values()]


_ALL = (
    Reader("safetensors", _safetensors_seeds, _in_checkpoint("model.safetensors", _read_weights)),
    *(_packed(layout, layout, "model.safetensors") for layout in sorted(READ_BY_CONFIG - {"mlx", "mlx-mxfp4"})),
    *(_packed(f"{layout}-config", layout, CONFIG_FILE) for layout in ("compressed-int4", "gptq")),
    _adapter("adapter", WEIGHTS),
    _adapter("adapter-config", ADAPTER_CONFIG),
    Reader("index", _index_seeds, _in_checkpoint("model.safetensors.index.json", open_graph)),
    Reader("gguf", _gguf_seeds, _read_file("x.gguf", read_gguf)),
    Reader("gguf-weights", _artifact_seeds("gguf", "Q8_0"), _artifact_reader("gguf", "Q8_0")),
    Reader("onnx-weights", _artifact_seeds("onnx", "q4"), _artifact_reader("onnx", "q4")),
    Reader("mlx-weights", _artifact_seeds("mlx", "8bit"), _artifact_reader("mlx", "8bit")),
    Reader("gguf-foreign", _artifact_seeds("gguf", "Q4_K_M"), _foreign_reader("gguf", "Q4_K_M")),
    Reader("onnx-foreign", _artifact_seeds("onnx", "q8"), _foreign_reader("onnx", "q8")),
    Reader("ct-foreign", _artifact_seeds("compressed-tensors", "FP8"), _foreign_reader("compressed-tensors", "FP8")),
    Reader("mlx-foreign", _artifact_seeds("mlx", "4bit"), _foreign_reader("mlx", "4bit")),
    Reader("gguf-source", _artifact_seeds("gguf", "Q4_0"), _source_reader("gguf", "Q4_0")),
    Reader("mlx-source", _artifact_seeds("mlx", "4bit-g32"), _source_reader("mlx", "4bit-g32")),
    Reader("coreml", _program_seeds, _read_package),
    Reader("config", _config_seeds, _read_file(CONFIG_FILE, _read_config)),
    Reader("tokenizer", _tokenizer_seeds, _in_checkpoint(TOKENIZER_FILE, _read_tokenizer)),
    Reader("tokenizer-config", _assets_seeds, _in_checkpoint("tokenizer_config.json", _read_assets)),
    Reader("generation-config", _assets_seeds, _in_checkpoint("generation_config.json", _read_assets)),
    Reader("template", _template_seeds, _read_template, is_guided=False),
    Reader("imatrix", _imatrix_seeds, _read_file("imatrix.dat", _read_importance)),
    Reader("statistics", _statistics_seeds, _read_statistics),
    Reader("manifest", _manifest_seeds, _read_manifest),
    Reader("recipe", _toml_seeds, _read_file("lfm-convert.toml", _read_toml)),
    Reader("prompts", _prompt_seeds, _read_file("prompts.jsonl", load_prompts)),
)
READERS: Mapping[str, Reader] = {reader.name: reader for reader in _ALL}
